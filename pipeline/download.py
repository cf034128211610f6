"""Fetch the clips of a segment list: yt-dlp finds a recording's media, FFmpeg cuts the segment.

A recording is a local file or any address that yt-dlp knows; both take the same way. FFmpeg reads
only what the segment needs, and writes FLAC with the recording's own rate and channels. A recording
with a gap inside the segment is damaged: what follows a gap would have an earlier label.
"""

import hashlib
import logging
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import imageio_ffmpeg
import soundfile
from tqdm import tqdm
from yt_dlp import YoutubeDL
from yt_dlp.utils import YoutubeDLError

from pipeline import failures, ledger
from pipeline.clipstore import ClipStore, Outcome
from pipeline.failures import UnavailableError
from pipeline.params.data import DownloadParams
from pipeline.segments import Segment

logger = logging.getLogger(__name__)

STAGE = "download"
CUT_VERSION = "2"  # raise it when the same segment of the same recording becomes another clip
MIN_CLIP_S = 0.1  # seconds; less is not a clip
SEEK_MARGIN_S = 1.0  # decoded before the segment, so that the decoder has settled at its start
BACKOFF_S = 1.0  # before the second attempt; doubles with each
EMPTY_FLAC = (1 << 63) - 1  # libsndfile's number of frames of a FLAC file without samples
PATIENCE = 10  # times timeout_s that one cut may take as long as data arrive
POLL_S = 0.1  # how soon a cut under way notices that the stage ends
GAP_S = 0.1  # time stamps that are further off are a gap; Vorbis's are off by up to 0.05 s
ROUNDING_S = 0.001
BLOCK = "4096"  # samples; by default FFmpeg takes the first frame's, of which few may be left


@dataclass(frozen=True)
class Media:
    """Where FFmpeg reads a recording."""

    url: str
    headers: dict[str, str]


def recording_url(template: str, ytid: str) -> str:
    """Return the URL of a recording; a template without a scheme is a path."""
    if "://" in template:
        return template.replace("{ytid}", quote(ytid))
    return Path(template.replace("{ytid}", ytid)).absolute().as_uri()


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


def downloader(timeout_s: float) -> YoutubeDL:
    """Return a yt-dlp that only looks recordings up; each thread needs its own."""
    silent = logging.getLogger("yt_dlp")  # what it says of a failure is in the exception, too
    silent.setLevel(logging.CRITICAL)
    options: dict[str, Any] = {
        "format": "bestaudio/best",
        "socket_timeout": timeout_s,
        "enable_file_urls": True,
        "extract_flat": "in_playlist",  # a page that lists recordings is not one
        "cachedir": False,
        "color": "never",
        "logger": silent,
        "noprogress": True,
    }
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
    return Media(info["url"], info.get("http_headers") or {})


def cut_command(media: Media, segment: Segment, target: Path, timeout_s: float) -> list[str]:
    """Return the FFmpeg command that writes exactly [start, end) of a recording.

    The first sample is chosen by its time stamp, after a coarse jump (the jump alone lands on the
    last second of an Ogg file when the segment lies behind its end); then samples are counted,
    since time stamps of compressed audio may be some milliseconds off from one packet to the next.
    The time stamps of what was counted are listed on standard output (see `gapless_s`).
    """
    path = local_path(media.url)
    if path is not None:
        source = ["-i", f"file:{path}"]
    else:
        headers = "".join(f"{name}: {value}\r\n" for name, value in media.headers.items())
        source = ["-rw_timeout", f"{timeout_s * 1e6:.0f}", "-headers", headers, "-i", media.url]
    jump_s = segment.start_s - SEEK_MARGIN_S
    seek = ["-ss", f"{jump_s:.6f}"] if jump_s > 0 else []  # "-ss 0" would drop 21 ms of an m4a
    begin, length = f"atrim=start={segment.start_s:.6f}", f"atrim=end={segment.duration_s:.6f}"
    stamped = f"{begin}:end={segment.end_s + 2 * GAP_S:.6f}"
    return [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", "-xerror"),
        *("-copyts", "-start_at_zero", *seek, *source),
        *("-map", "0:a:0", "-map_metadata", "-1", "-threads", "1"),
        *("-af", f"{begin},asetpts=round(N/SR/TB),{length}"),
        *("-c:a", "flac", "-sample_fmt", "s16", "-frame_size", BLOCK),
        *("-fflags", "+bitexact", "-flags:a", "+bitexact", "-f", "flac", str(target)),
        *("-map", "0:a:0", "-af", stamped, "-f", "framecrc", "pipe:1"),
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
    code, frames, errors = run_ffmpeg(command, PATIENCE * timeout_s, stop)
    if code:
        raise failures.of_cutting(errors)
    duration_s, whole_s = measure_s(target), gapless_s(frames, segment.start_s)
    if duration_s > whole_s + ROUNDING_S:
        reason = f"the recording has a gap at {segment.start_s + whole_s:.3f} s"
        raise UnavailableError("corrupt", reason)
    failures.check_damage(errors)
    return duration_s


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


def gapless_s(frames: str, start_s: float) -> float:
    """Return for how many seconds audio follows `start_s` without a gap.

    `frames` is FFmpeg's list `framecrc`: after lines with the time base ("#tb 0: 1/44100") and
    others, one line "stream, dts, pts, duration, bytes, checksum" per frame.
    """
    base_s, length = 1.0, 0  # seconds; units of it
    for line in frames.splitlines():
        if line.startswith("#tb"):
            numerator, denominator = line.split(":")[1].split("/")
            base_s = int(numerator) / int(denominator)
        elif not line.startswith("#"):
            _, _, stamp, duration, *_ = line.split(",")
            if abs((int(stamp) - length) * base_s - start_s) > GAP_S:
                break
            length += int(duration)
    return length * base_s


def measure_s(clip: Path) -> float:
    """Return the duration of a clip; 0 for the file without samples that FFmpeg may leave."""
    try:
        info = soundfile.info(clip)
    except soundfile.LibsndfileError:
        return 0.0
    return 0.0 if info.frames == EMPTY_FLAC else info.duration


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


class Fetcher:
    """Fetches what a store lacks of the clips of one source, with several threads."""

    def __init__(self, template: str, store: ClipStore, partial: Path, params: DownloadParams):
        self.template = template
        self.store = store
        self.partial = partial  # folder for files under way, of this process alone
        self.params = params
        self._stop = threading.Event()

    def run(self, segments: Sequence[Segment], connections: int) -> list[ledger.Row]:
        """Fetch every clip that is missing and return the ledger of all."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        self._stop = threading.Event()
        missing: queue.SimpleQueue[Segment] = queue.SimpleQueue()
        for segment in segments:
            if not self.is_settled(segment):
                missing.put(segment)
        logger.info("%d of %d clips to fetch", missing.qsize(), len(segments))
        threads = min(connections, missing.qsize())
        with (
            tqdm(total=missing.qsize(), unit="clip", desc=STAGE, disable=None) as bar,
            ThreadPoolExecutor(max(threads, 1)) as pool,
        ):
            workers = [pool.submit(self._work, missing, bar) for _ in range(threads)]
            try:
                for worker in as_completed(workers):
                    worker.result()
            finally:
                self._stop.set()
        return [to_row(segment, self.store.last(key(segment))) for segment in segments]

    def is_settled(self, segment: Segment) -> bool:
        """Return whether a clip needs no attempt: its recording is the one of the last."""
        last = self.store.last(key(segment))
        now = origin(recording_url(self.template, segment.ytid))
        return last is not None and last.origin == now and self.store.is_settled(key(segment))

    def _work(self, missing: queue.SimpleQueue[Segment], bar: tqdm) -> None:
        with downloader(self.params.timeout_s) as site:
            while not self._stop.is_set():
                try:
                    segment = missing.get_nowait()
                except queue.Empty:
                    return
                self._fetch_and_store(site, segment)
                bar.update()

    def _fetch_and_store(self, site: YoutubeDL, segment: Segment) -> None:
        url = recording_url(self.template, segment.ytid)
        clip = self.partial / f"{key(segment)}.flac"
        before = origin(url)
        try:
            outcome = self._fetch_with_retries(site, url, segment, clip)
        except UnavailableError as error:
            clip.unlink(missing_ok=True)
            failed = Outcome(status=error.kind, reason=error.reason, origin=before)
            if not self._stop.is_set():
                self.store.add(key(segment), failed)
        else:
            self.store.add(key(segment), replace(outcome, origin=before), clip)

    def _fetch_with_retries(
        self, site: YoutubeDL, url: str, segment: Segment, clip: Path
    ) -> Outcome:
        for attempt in range(1, self.params.tries + 1):
            try:
                return fetch(site, url, segment, clip, self.params.timeout_s, self._stop)
            except UnavailableError as error:
                last = attempt == self.params.tries or self._stop.is_set()
                if error.kind != "transient" or last:
                    raise
            self._stop.wait(BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError("download.tries is positive")


def key(segment: Segment) -> str:
    """Return what a clip is stored under: recording, start and end."""
    return f"{segment.clip_id}_{round(segment.end_s * 1000)}"


def to_row(segment: Segment, outcome: Outcome | None) -> ledger.Row:
    """Return the ledger's row of a segment from how fetching it ended."""
    row = ledger.from_segment(segment)
    if outcome is None:
        raise AssertionError(f"{row.clip_id} was never tried")
    if outcome.status != ledger.OK:
        return row.failed(STAGE, outcome.status, outcome.reason)
    return replace(row, bytes=outcome.bytes, sha256=outcome.sha256, duration_s=outcome.duration_s)
