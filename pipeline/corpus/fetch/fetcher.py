"""Fetch the clips that a store lacks: several threads, retries, a limit per run."""

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

from pipeline.core.settings import NetworkParams
from pipeline.core.stage import work_root
from pipeline.corpus.clips import ledger
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch import failures, requirements
from pipeline.corpus.fetch.clip_store import ClipStore, Outcome
from pipeline.corpus.fetch.cutting import local_path
from pipeline.corpus.fetch.download_ledger import clip_key, to_row
from pipeline.corpus.fetch.failures import STAGE, UnavailableError
from pipeline.corpus.fetch.look_up import LookUp
from pipeline.corpus.fetch.media import fetch_clip, file_state, recording_url
from pipeline.corpus.fetch.rate_limit import BlockedError, Clock, Gate, StoppedError, back_off_s

logger = logging.getLogger(__name__)
# Part of the store's path. Raised by hand, when the same segment of the same recording becomes
# another clip: a hash of the code would make a refactoring lose millions of fetched clips.
CUT_VERSION = "2"
TOOL = f"yt-dlp {requirements.yt_dlp_version()}"
STOP_S = 5.0  # how long requests under way may take to end when the stage ends


def store_folder(template: str) -> Path:
    """Return where the clips of a URL template are kept, whatever else changes."""
    # The placeholder's first name, so that clips of earlier versions are found.
    known_as = template.replace("{recording_id}", "{ytid}")
    name = hashlib.sha256(f"{known_as} {CUT_VERSION}".encode()).hexdigest()[:16]
    return work_root() / "clips" / name


class Fetcher:
    """Fetches the clips of one source that a store lacks, with several threads."""

    def __init__(self, template: str, store: ClipStore, partial: Path, params: NetworkParams):
        self.template = template
        self.store = store
        self.partial = partial  # folder for files under way, of this process alone
        self.params = params
        self.is_local = local_path(recording_url(template, "")) is not None
        self._stop = threading.Event()
        self._client = client_id(params)
        self._is_over = False  # whether results of threads that are still running are discarded
        self._clock = Clock(self._stop)
        self._gate = Gate(params, self._clock, random.Random())
        self._refusals = Counter[str]()  # by clip, without those that are the site's mood
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
        return [to_row(segment, self.store.last(clip_key(segment))) for segment in segments]

    def missing(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return the segments that need an attempt, in order."""
        return [segment for segment in segments if not self.is_settled(segment)]

    def _fetch_missing(self, segments: Sequence[Segment], connections: int) -> None:
        tried = self.missing(segments)[: self.params.limit or None]
        requirements.check_fetching(self.template, self.store.folder, self.params)
        logger.info("%d of %d clips to fetch", len(tried), len(segments))
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True, exist_ok=True)
        self._stop.clear()
        try:
            self._fetch_all(tried, connections)
        except BlockedError as error:
            done = sum(self.store.is_settled(clip_key(segment)) for segment in segments)
            raise RuntimeError(refusal(error, done, len(segments))) from None

    def _fetch_all(self, segments: Sequence[Segment], connections: int) -> None:
        waiting: queue.SimpleQueue[Segment] = queue.SimpleQueue()
        for segment in segments:
            waiting.put(segment)
        with tqdm(total=len(segments), unit="clip", desc=STAGE, disable=None) as bar:
            self._is_over = False
            ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
            threads = [
                threading.Thread(
                    target=self._work_and_report,
                    args=(waiting, bar, ended),
                    name=STAGE,
                    daemon=True,
                )
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

    def _work_and_report(
        self,
        waiting: queue.SimpleQueue[Segment],
        bar: tqdm,
        ended: queue.SimpleQueue[Exception | None],
    ) -> None:
        try:
            self._work(waiting, bar)
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            ended.put(error)
        else:
            ended.put(None)

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """Stop the threads, without waiting for those that hang on a silent site."""
        self._stop.set()
        deadline = time.monotonic() + STOP_S
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        self._is_over = True

    def is_settled(self, segment: Segment) -> bool:
        """Return whether a clip needs no attempt: nothing that decided the last one has changed."""
        last = self.store.last(clip_key(segment))
        if last is None or not self.store.is_settled(clip_key(segment)):
            return False
        if self._may_now_be_admitted(last):
            return False
        return not self.is_local or last.origin == file_state(self._url(segment))

    def _may_now_be_admitted(self, last: Outcome) -> bool:
        """Return whether a clip was refused without the account or proxy that is now used."""
        new = set(self._client.split()) - set(last.via.split())
        if last.status == "login":
            return "cookies" in new
        return last.status == "geo" and bool(new - {"cookies"})

    def _url(self, segment: Segment) -> str:
        return recording_url(self.template, segment.recording_id)

    def _work(self, waiting: queue.SimpleQueue[Segment], bar: tqdm) -> None:
        with LookUp(self.params) as site:
            while not self._stop.is_set():
                try:
                    segment = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    is_done = self._fetch_and_store(site, segment)
                except StoppedError:
                    return
                if is_done:
                    bar.update()
                else:
                    waiting.put(segment)

    def _fetch_and_store(self, site: LookUp, segment: Segment) -> bool:
        """Fetch a clip; return whether this run is done with it."""
        key, state = clip_key(segment), file_state(self._url(segment))
        clip = self.partial / f"{key}.{os.getpid()}.flac"  # FFmpeg may outlive a killed run
        content = None
        try:
            outcome = self._fetch_with_retries(site, segment, clip)
            content = clip.read_bytes()
        except UnavailableError as error:
            if self._stop.is_set():
                return True
            if error.kind == "blocked" and self._is_tried_later(key, error):
                return False
            outcome = Outcome(status=error.kind, reason=error.reason, tries=error.tries)
        finally:
            clip.unlink(missing_ok=True)
        if not self._is_over:
            described = replace(outcome, origin=state, tool=TOOL, via=self._client)
            self.store.add(key, described, content)
        return True

    def _is_tried_later(self, key: str, error: UnavailableError) -> bool:
        """Return whether a refused clip goes back to the queue, as the site may refuse any now."""
        self._refusals[key] += not error.is_excused
        return self._refusals[key] < self.params.tries

    def _fetch_with_retries(self, site: LookUp, segment: Segment, clip: Path) -> Outcome:
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
        """Return how often a clip may fail like this; re-reading a file changes nothing."""
        is_content = self.is_local and error.kind in failures.CONTENT
        return 1 if is_content else failures.tries_of(error, self.params.tries)

    def _attempt(self, site: LookUp, segment: Segment, clip: Path) -> Outcome:
        """Fetch a clip once, from a web site only when it may be asked."""
        arguments = (site, self._url(segment), segment, clip, self.params.timeout_s, self._stop)
        if self.is_local:
            return fetch_clip(*arguments)
        ticket = self._gate.enter()
        try:
            outcome = fetch_clip(*arguments)
        except UnavailableError as error:
            error.is_excused = self._gate.failed(ticket, error)
            raise
        self._gate.answered(ticket)
        return outcome


def client_id(params: NetworkParams) -> str:
    """Return how a site identifies this client: "cookies" of an account, host and port of a proxy.

    The proxy's user and password are left out.
    """
    address = urlsplit(params.proxy).netloc.rpartition("@")[2]
    return " ".join(filter(None, ["cookies" if params.cookies else "", address]))


def refusal(error: BlockedError, done: int, total: int) -> str:
    """Return what to do when the site keeps refusing this client."""
    return (
        f"{error} {done} of {total} clips are done and kept; nothing was published. Go on with the "
        "same command: later (often an hour is enough, sometimes a day), at a lower "
        "network.clips_per_hour, with the cookies of an account (network.cookies; it may be "
        "banned), through another network (network.proxy), or with a newer yt-dlp (`pip install "
        "-U 'yt-dlp[default,deno]'`). None of these loses a clip."
    )
