"""Fetch the clips of a segment list: yt-dlp finds a recording's media, FFmpeg cuts the segment.

A recording is a local file or any address that yt-dlp knows; both take the same way. FFmpeg reads
only what the segment needs, and writes FLAC with the recording's own rate and channels. A recording
with a gap inside the segment is damaged: what follows a gap would have an earlier label.
"""

import hashlib
import io
import logging
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import imageio_ffmpeg
import soundfile
from yt_dlp import YoutubeDL
from yt_dlp.utils import YoutubeDLError

from pipeline.core.settings import NetworkParams
from pipeline.corpus import ledger
from pipeline.corpus.fetch import failures, requirements
from pipeline.corpus.fetch.clip_store import Outcome
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.segments import Segment

CUT_VERSION = "2"  # raise it when the same segment of the same recording becomes another clip
MIN_CLIP_S = 0.1  # seconds; less is not a clip
SEEK_MARGIN_S = 1.0  # decoded before the segment, so that the decoder has settled at its start
EMPTY_FLAC = (1 << 63) - 1  # libsndfile's number of frames of a FLAC file without samples
PATIENCE = 10  # times timeout_s that one cut may take as long as data arrive
POLL_S = 0.5  # how soon a cut under way notices that the stage ends
GAP_S = 0.1  # time stamps that are further off are a gap; Vorbis's are off by up to 0.05 s
REQUEST_BYTES = "262144"  # of one range; the site slows down a reader of one long range
BLOCK = 4096  # samples; by default FFmpeg takes the first frame's, of which few may be left
STAMPED = 1024  # samples of each time stamp that is looked at


@dataclass(frozen=True)
class Media:
    """Where and how FFmpeg reads a recording."""

    url: str
    headers: dict[str, str]
    proxy: str = ""


def recording_url(template: str, recording_id: str) -> str:
    """Return the URL of a recording; a template without a scheme is a path."""
    if "://" in template:
        return template.replace("{recording_id}", quote(recording_id))
    return Path(template.replace("{recording_id}", recording_id)).absolute().as_uri()


def local_path(url: str) -> Path | None:
    """Return the path of a file:// URL, None for any other."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def origin(url: str) -> str:
    """Return what changes when a local recording is replaced; empty if missing or not local."""
    path = local_path(url)
    if path is None or not path.exists():
        return ""
    state = path.stat()
    return f"{state.st_size} bytes of {state.st_mtime_ns} ns"


def downloader(params: NetworkParams) -> YoutubeDL:
    """Return a yt-dlp that only looks recordings up; each thread needs its own.

    It keeps cookies in memory: with a path, every thread would overwrite the user's file.
    """
    silent = logging.getLogger("yt_dlp")  # what it says of a failure is in the exception, too
    silent.setLevel(logging.CRITICAL)
    options: dict[str, Any] = {
        "format": "bestaudio/best",
        "socket_timeout": params.timeout_s,
        "enable_file_urls": True,
        "extract_flat": "in_playlist",  # a page that lists recordings is not one
        "cachedir": False,
        "js_runtimes": {name: {} for name in requirements.JS_RUNTIMES},
        "color": "never",
        "logger": silent,
        "noprogress": True,
    }
    if params.cookies:
        options["cookiefile"] = io.StringIO(Path(params.cookies).read_text(encoding="utf-8"))
    if params.proxy:
        options["proxy"] = params.proxy
    return YoutubeDL(options)


def resolve(site: YoutubeDL, url: str) -> Media:
    """Find the media behind a recording's URL.

    Raises:
        UnavailableError: there is none, or it cannot be had.
    """
    path = local_path(url)
    if path is not None and not path.exists():
        raise UnavailableError("gone", f"there is no file {path.name}")
    if path is not None and not path.is_file():  # reading a named pipe may never end
        raise UnavailableError("no_audio", f"{path.name} is a folder, pipe or device, not a file")
    try:
        info = site.extract_info(url, download=False)
    except YoutubeDLError as error:
        raise failures.of_extraction(error) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # An extractor that met an answer it was not written for; one recording must not stop all.
        raise UnavailableError("transient", f"yt-dlp failed: {error!r}") from error
    if not info or "url" not in info:
        raise UnavailableError("no_audio", "the address leads to a page, not to a recording")
    return media_of(site, info)


def media_of(site: YoutubeDL, info: dict[str, Any]) -> Media:
    """Return what FFmpeg needs of yt-dlp's answer, with the cookies that are meant for its host."""
    if not info["url"].startswith(("http://", "https://")):
        return Media(info["url"], {})
    headers = dict(info.get("http_headers") or {})
    if cookies := site.cookiejar.get_cookie_header(info["url"]):
        headers["Cookie"] = cookies
    return Media(info["url"], headers, site.params.get("proxy") or "")


def cut_command(media: Media, segment: Segment, target: Path, timeout_s: float) -> list[str]:
    """Return the FFmpeg command that writes exactly [start, end) of a recording.

    The first sample is chosen by its time stamp, after a coarse jump (the jump alone lands on the
    last second of an Ogg file when the segment lies behind its end); then samples are counted,
    since time stamps of compressed audio may be some milliseconds off from one packet to the next.
    The time stamps of what was counted are listed on standard output (see `gap_s`).
    """
    path = local_path(media.url)
    if path is not None:
        source = ["-i", f"file:{path}"]
    else:
        headers = "".join(f"{name}: {value}\r\n" for name, value in media.headers.items())
        source = ["-rw_timeout", f"{timeout_s * 1e6:.0f}", "-headers", headers]
        source += ["-request_size", REQUEST_BYTES]
        source += ["-http_proxy", media.proxy] if media.proxy else []
        source += ["-i", media.url]
    jump_s = segment.start_s - SEEK_MARGIN_S
    seek = ["-ss", f"{jump_s:.6f}"] if jump_s > 0 else []  # "-ss 0" would drop 21 ms of an m4a
    filters = [
        f"atrim=start={segment.start_s:.6f}",
        f"asetnsamples={STAMPED}:pad=0",
        *("ametadata=add:key=-:value=-", "ametadata=print:file=-"),  # prints only what has some
        *("asetpts=round(N/SR/TB)", f"atrim=end={segment.duration_s:.6f}"),
    ]
    return [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", "-xerror"),
        *("-copyts", "-start_at_zero", *seek, *source),
        *("-map", "0:a:0", "-map_metadata", "-1", "-threads", "1"),
        *("-af", ",".join(filters)),
        *("-c:a", "flac", "-sample_fmt", "s16", "-frame_size", str(BLOCK)),
        *("-fflags", "+bitexact", "-flags:a", "+bitexact", "-f", "flac", str(target)),
    ]


def cut(
    media: Media, segment: Segment, target: Path, timeout_s: float, stop: threading.Event
) -> float:
    """Write the segment of a recording as FLAC and return its duration in seconds.

    Raises:
        UnavailableError: the recording cannot be read, holds no audio, or is damaged; or `stop`
            was set meanwhile.
        OSError: there is no space left on this machine, or no FFmpeg.
    """
    command = cut_command(media, segment, target, timeout_s)
    code, stamps, errors = run_ffmpeg(command, PATIENCE * timeout_s, stop)
    if code:
        raise failures.of_cutting(errors)
    frames, rate = measure(target)
    gap = gap_s(stamps, rate, segment.start_s)
    if gap is not None and gap < frames / rate:
        reason = f"the recording has a gap at {segment.start_s + gap:.3f} s"
        raise UnavailableError("corrupt", reason)
    failures.check_damage(errors)
    return frames / rate


def run_ffmpeg(command: list[str], limit_s: float, stop: threading.Event) -> tuple[int, str, str]:
    """Return FFmpeg's exit code and what it wrote to standard output and error.

    Raises:
        UnavailableError: it took longer than `limit_s`, or `stop` was set; it has been killed.
    """
    deadline = time.monotonic() + limit_s
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,  # Ctrl-C ends the stage, which then ends FFmpeg
    ) as process:
        while True:
            try:
                output, errors = process.communicate(timeout=POLL_S)
                return process.returncode, output, errors
            except subprocess.TimeoutExpired:
                if not stop.is_set() and time.monotonic() < deadline:
                    continue
                process.kill()
            why = "interrupted" if stop.is_set() else f"no complete clip within {limit_s:.0f} s"
            raise UnavailableError("transient", why)


def gap_s(stamps: str, rate: int, start_s: float) -> float | None:
    """Return how many seconds after `start_s` audio has its first gap, None if it has none.

    `stamps` has a line "frame:0 pts:480000 pts_time:10" for each `STAMPED` samples, and others.
    """
    for number, stamp in re.findall(r"^frame:(\d+) .*pts_time:([-.\d]+)", stamps, re.MULTILINE):
        after_s = int(number) * STAMPED / rate
        if abs(float(stamp) - start_s - after_s) > GAP_S:
            return after_s
    return None


def measure(clip: Path) -> tuple[int, int]:
    """Return the samples and the sample rate of a clip; FFmpeg may leave a file without samples."""
    try:
        info = soundfile.info(clip)
    except soundfile.LibsndfileError:
        return 0, 1
    return (0 if info.frames == EMPTY_FLAC else info.frames), info.samplerate


def fetch(
    site: YoutubeDL,
    url: str,
    segment: Segment,
    target: Path,
    timeout_s: float,
    stop: threading.Event,
) -> Outcome:
    """Fetch one clip into `target`, in one attempt.

    Raises:
        UnavailableError: it cannot be had.
    """
    duration_s = cut(resolve(site, url), segment, target, timeout_s, stop)
    if duration_s < MIN_CLIP_S:
        reason = f"the recording ends before it: {duration_s:.3f} of {segment.duration_s:.3f} s"
        raise UnavailableError("short", reason)
    content = target.read_bytes()
    return Outcome(
        status=ledger.OK,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        duration_s=round(duration_s, 6),
    )
