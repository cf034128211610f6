"""The queue of clips to fetch: several threads, retries, what is settled and what is left."""

import hashlib
import logging
import os
import queue
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm
from yt_dlp import YoutubeDL

from pipeline.core.settings import NetworkParams
from pipeline.core.stage import root
from pipeline.corpus import ledger
from pipeline.corpus.fetch import failures, requirements
from pipeline.corpus.fetch.clip_store import ClipStore, Outcome
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.fetch.media import (
    CUT_VERSION,
    downloader,
    fetch,
    local_path,
    origin,
    recording_url,
)
from pipeline.corpus.fetch.rate_limit import BlockedError, Clock, Gate, StoppedError, back_off_s
from pipeline.corpus.segments import Segment

logger = logging.getLogger(__name__)
STAGE = "download"
WAITING = "waiting"  # status of a clip that no run has tried
TOOL = f"yt-dlp {requirements.yt_dlp_version()}"
STOP_S = 5.0  # within which a request under way must end when the stage is to end


def store_folder(template: str) -> Path:
    """Return where the clips of a template are kept, whatever else changes."""
    # The placeholder's first name, so that clips of earlier versions are found.
    known_as = template.replace("{recording_id}", "{ytid}")
    identity = hashlib.sha256(f"{known_as} {CUT_VERSION}".encode()).hexdigest()[:16]
    return root() / ".work" / "clips" / identity


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
        requirements.check_cookies(params.cookies)

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
        requirements.check_fetching(self.template, self.store.folder, self.params)
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
        return recording_url(self.template, segment.recording_id)

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
