"""Fetch the clips of a segment list: yt-dlp finds a recording's media, FFmpeg cuts the segment.

A recording is a local file or any address that yt-dlp knows; both take the same way. FFmpeg reads
only what the segment needs, and writes FLAC with the recording's own rate and channels. A recording
with a gap inside the segment is damaged: what follows a gap would have an earlier label.
"""

import hashlib
import io
import logging
import os
import queue
import random
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
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

from pipeline import failures, ledger, tools
from pipeline.clipstore import ClipStore, Outcome
from pipeline.core.settings import NetworkParams
from pipeline.core.stage import root
from pipeline.failures import UnavailableError
from pipeline.politeness import BlockedError, Clock, Gate, StoppedError, back_off_s
from pipeline.segments import Segment

logger = logging.getLogger(__name__)

STAGE = "download"
CUT_VERSION = "2"  # raise it when the same segment of the same recording becomes another clip
MIN_CLIP_S = 0.1  # seconds; less is not a clip
SEEK_MARGIN_S = 1.0  # decoded before the segment, so that the decoder has settled at its start
WAITING = "waiting"  # status of a clip that no run has tried
TOOL = f"yt-dlp {tools.yt_dlp_version()}"
EMPTY_FLAC = (1 << 63) - 1  # libsndfile's number of frames of a FLAC file without samples
PATIENCE = 10  # times timeout_s that one cut may take as long as data arrive
STOP_S = 5.0  # within which a request under way must end when the stage is to end
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


def recording_url(template: str, ytid: str) -> str:
    """Return the URL of a recording; a template without a scheme is a path."""
    if "://" in template:
        return template.replace("{ytid}", quote(ytid))
    return Path(template.replace("{ytid}", ytid)).absolute().as_uri()


def store_folder(template: str) -> Path:
    """Return where the clips of a template are kept, whatever else changes."""
    identity = hashlib.sha256(f"{template} {CUT_VERSION}".encode()).hexdigest()[:16]
    return root() / ".work" / "clips" / identity


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
        "js_runtimes": {name: {} for name in tools.JS_RUNTIMES},
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


class Fetcher:
    """Fetches what a store lacks of the clips of one source, with several threads."""

    def __init__(self, template: str, store: ClipStore, partial: Path, params: NetworkParams):
        self.template = template
        self.store = store
        self.partial = partial  # folder for files under way, of this process alone
        self.params = params
        self.is_local = local_path(recording_url(template, "")) is not None
        self._stop = threading.Event()
        self._via = identity(params)
        self._is_over = False  # what a thread still brings is too late
        self._clock = Clock(self._stop)
        self._gate = Gate(params, self._clock, random.Random())
        self._refused = Counter[str]()  # key -> refusals that were for this clip alone
        tools.check_cookies(params.cookies)

    def run(self, segments: Sequence[Segment], connections: int) -> list[ledger.Row]:
        """Fetch every clip that is missing, up to `network.limit`, and return the ledger of all.

        Raises:
            RuntimeError: another process fetches clips of this source, the site keeps refusing this
                client, or this machine lacks a tool.
            OSError: the disk is full.
        """
        if not all(map(self.is_settled, segments)):
            with self.store.locked():
                self._fetch_missing(segments, connections)
        return [to_row(segment, self.store.last(key(segment))) for segment in segments]

    def _fetch_missing(self, segments: Sequence[Segment], connections: int) -> None:
        missing = [segment for segment in segments if not self.is_settled(segment)]
        tried = missing[: self.params.limit or None]
        tools.check_fetching(self.template, self.store.folder, self.params)
        logger.info("%d of %d clips to fetch", len(tried), len(segments))
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True, exist_ok=True)
        self._stop.clear()
        try:
            self._fetch_all(tried, connections)
        except BlockedError as error:
            kept = sum(self.store.is_settled(key(segment)) for segment in segments)
            raise RuntimeError(refusal(error, kept, len(segments))) from None

    def _fetch_all(self, segments: Sequence[Segment], connections: int) -> None:
        missing: queue.SimpleQueue[Segment] = queue.SimpleQueue()
        for segment in segments:
            missing.put(segment)
        with tqdm(total=len(segments), unit="clip", desc=STAGE, disable=None) as bar:
            self._is_over = False
            ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
            work, told = self._work_and_tell, (missing, bar, ended)
            threads = [
                threading.Thread(target=work, args=told, name=STAGE, daemon=True)
                for _ in segments[:connections]
            ]
            try:
                for thread in threads:
                    thread.start()
                for _ in threads:
                    if error := ended.get():
                        raise error
            finally:
                self._end(threads)

    def _work_and_tell(
        self,
        missing: queue.SimpleQueue[Segment],
        bar: tqdm,
        ended: queue.SimpleQueue[Exception | None],
    ) -> None:
        try:
            self._work(missing, bar)
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            ended.put(error)
        else:
            ended.put(None)

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """Let the threads end; one that waits for a site that says nothing is left behind."""
        self._stop.set()
        deadline = time.monotonic() + STOP_S
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        self._is_over = True

    def is_settled(self, segment: Segment) -> bool:
        """Return whether a clip needs no attempt: its recording is the one of the last."""
        last = self.store.last(key(segment))
        if last is None or not self.store.is_settled(key(segment)):
            return False
        if self._is_admitted_anew(last):
            return False
        return not self.is_local or last.origin == origin(self._url(segment))

    def _is_admitted_anew(self, last: Outcome) -> bool:
        """Return whether a clip was refused for want of the account or proxy that there is now."""
        new = set(self._via.split()) - set(last.via.split())
        if last.status == "login":
            return "cookies" in new
        return last.status == "geo" and bool(new - {"cookies"})

    def _url(self, segment: Segment) -> str:
        return recording_url(self.template, segment.ytid)

    def _work(self, missing: queue.SimpleQueue[Segment], bar: tqdm) -> None:
        with downloader(self.params) as site:
            while not self._stop.is_set():
                try:
                    segment = missing.get_nowait()
                except queue.Empty:
                    return
                try:
                    ended = self._fetch_and_store(site, segment)
                except StoppedError:
                    return
                if ended:
                    bar.update()
                else:
                    missing.put(segment)

    def _fetch_and_store(self, site: YoutubeDL, segment: Segment) -> bool:
        """Fetch a clip; return whether this run has done with it."""
        name, before = key(segment), origin(self._url(segment))
        clip = self.partial / f"{name}.{os.getpid()}.flac"  # a killed run's FFmpeg may live on
        content = None
        try:
            outcome = self._fetch_with_retries(site, segment, clip)
            content = clip.read_bytes()
        except UnavailableError as error:
            if self._stop.is_set():
                return True
            if error.kind == "blocked" and self._is_tried_later(name, error):
                return False
            outcome = Outcome(status=error.kind, reason=error.reason, tries=error.tries)
        finally:
            clip.unlink(missing_ok=True)
        if not self._is_over:
            described = replace(outcome, origin=before, tool=TOOL, via=self._via)
            self.store.add(name, described, content)
        return True

    def _is_tried_later(self, name: str, error: UnavailableError) -> bool:
        """Return whether a refused clip goes back to the queue: the site refuses everybody now."""
        self._refused[name] += not error.is_excused
        return self._refused[name] < self.params.tries

    def _fetch_with_retries(self, site: YoutubeDL, segment: Segment, clip: Path) -> Outcome:
        failed = Counter[str]()
        while True:
            attempt = failed.total() + 1
            try:
                return replace(self._attempt(site, segment, clip), tries=attempt)
            except UnavailableError as error:
                error.tries = attempt
                failed[error.kind] += 1
                again = failed[error.kind] < self._tries_of(error)
                if not again or self._stop.is_set():
                    raise
                wait_s = back_off_s(
                    attempt, self.params.backoff_s, error.retry_after_s, random.random
                )
            self._clock.wait(wait_s)

    def _tries_of(self, error: UnavailableError) -> int:
        """Return how often a clip may fail like this; a file is the same when read again."""
        is_content = self.is_local and error.kind in failures.CONTENT
        return 1 if is_content else failures.tries_of(error, self.params.tries)

    def _attempt(self, site: YoutubeDL, segment: Segment, clip: Path) -> Outcome:
        """Fetch a clip once, at a time at which the site may be asked; files may be read always."""
        timeout_s = self.params.timeout_s
        if self.is_local:
            return fetch(site, self._url(segment), segment, clip, timeout_s, self._stop)
        number = self._gate.enter()
        try:
            outcome = fetch(site, self._url(segment), segment, clip, timeout_s, self._stop)
        except UnavailableError as error:
            error.is_excused = self._gate.failed(number, error)
            raise
        self._gate.answered(number)
        return outcome


def identity(params: NetworkParams) -> str:
    """Return what a site knows a client by: "cookies" of an account, host and port of a proxy."""
    address = urlsplit(params.proxy).netloc.rpartition("@")[2]  # without user and password
    return " ".join(filter(None, ["cookies" if params.cookies else "", address]))


def refusal(error: BlockedError, kept: int, total: int) -> str:
    """Return what to do when the site keeps refusing this client."""
    return (
        f"{error} {kept} of {total} clips are done and kept; nothing was published. Go on with the "
        "same command: later (often an hour is enough, sometimes a day), at a lower "
        "network.clips_per_hour, with the cookies of an account (network.cookies; it may be "
        "banned), through another network (network.proxy), or with a newer yt-dlp (`pip install "
        "-U 'yt-dlp[default,deno]'`). None of these loses a clip."
    )


def check_tried(rows: Sequence[ledger.Row], publish_partial: bool) -> None:
    """Stop if clips were left for a later run, unless what is there shall be published.

    Raises:
        RuntimeError: with their number and how to go on.
    """
    left = sum(row.status == WAITING for row in rows)
    if left and not publish_partial:
        raise RuntimeError(
            f"{left} of {len(rows)} clips were not tried yet: this run ended at network.limit. "
            "What was fetched is kept, nothing was published. Run it again to go on, or set "
            "download.publish_partial = true to publish what is there."
        )


def key(segment: Segment) -> str:
    """Return what a clip is stored under: recording, start and end."""
    return f"{segment.clip_id}_{round(segment.end_s * 1000)}"


def to_row(segment: Segment, outcome: Outcome | None) -> ledger.Row:
    """Return the ledger's row of a segment from how fetching it ended."""
    if outcome is None:
        return ledger.from_segment(segment).failed(STAGE, WAITING, "not tried yet")
    is_ok = outcome.status == ledger.OK
    return ledger.from_segment(
        segment,
        status=outcome.status,
        stage="" if is_ok else STAGE,
        reason=outcome.reason,
        bytes=outcome.bytes,
        sha256=outcome.sha256,
        duration_s=outcome.duration_s,
    )
