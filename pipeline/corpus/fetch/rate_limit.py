"""When a request may be made to a web site: rate, hours of the day, pauses after refusals.

yt-dlp's wiki on YouTube (Extractors, 2026-04): guests get about 300 recordings an hour, accounts
about 2,000, at 5 to 10 s between requests; clients that exceed this are refused, later banned.
Times are seconds of a monotonic clock; every wait ends at once when the download stops.
"""

import logging
import random
import threading
import time
from collections.abc import Callable

from pipeline.core.settings import NetworkParams
from pipeline.corpus.fetch.failures import UnavailableError

logger = logging.getLogger(__name__)

JITTER = 0.5  # relative variation of the interval between requests, so it is not constant
POLL_S = 0.1  # how soon a thread notices that another thread's trial has ended
RETRY_AFTER_MAX_S = 86_400.0  # longer requests to wait are cut to a day


class StoppedError(Exception):
    """The download stops; clips under way are not recorded."""


class BlockedError(RuntimeError):
    """The site keeps refusing this client; the message says what happened."""


class Clock:
    """Real time; tests use a fake one."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def hour(self) -> float:
        """Return the hour of the day in local time, with its fraction."""
        local = time.localtime()
        return local.tm_hour + local.tm_min / 60 + local.tm_sec / 3600

    def wait(self, seconds: float) -> None:
        """Wait.

        Raises:
            StoppedError: the download stops.
        """
        if self.stop.wait(max(seconds, 0.0)):
            raise StoppedError


class TokenBucket:
    """Allows `per_hour` requests an hour to all threads together; 0 is no limit.

    The bucket holds one token, so requests are evenly spread and none are saved up in a pause.
    """

    def __init__(self, per_hour: float, clock: Clock, rng: random.Random) -> None:
        self.per_hour = per_hour
        self.clock = clock
        self.rng = rng
        self._lock = threading.Lock()
        self._next_s = -float("inf")  # when the next token is available

    def take(self) -> None:
        """Wait for a token."""
        if not self.per_hour:
            return
        with self._lock:
            mine_s = max(self._next_s, self.clock.now())
            jitter = self.rng.uniform(1 - JITTER, 1 + JITTER)
            self._next_s = mine_s + 3600 / self.per_hour * jitter
        self.clock.wait(mine_s - self.clock.now())


class Breaker:
    """Circuit breaker: pauses all requests after several refusals in a row.

    After a pause, one trial request is made while the others wait for its answer. If it is refused
    too, the next pause is twice as long; after `network.pauses` of them the download ends. Answers
    to requests made before a pause are ignored.
    """

    def __init__(self, params: NetworkParams, clock: Clock) -> None:
        self.params = params
        self.clock = clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._paused = 0  # pauses since the site last served a request
        self._until_s = -float("inf")
        self._trial = False  # whether the trial request after a pause is under way
        self._round = 0

    def wait(self) -> None:
        """Wait until a request may be made."""
        while (left_s := self._left_s()) > 0:
            self.clock.wait(left_s)

    def enter(self) -> int | None:
        """Return a ticket to report a request's answer with, None if it must wait."""
        with self._lock:
            if self._left_s() > 0:
                return None
            self._trial = self._paused > 0
            return self._round

    def _left_s(self) -> float:
        left_s = self._until_s - self.clock.now()
        return max(left_s, POLL_S) if self._trial else left_s

    def answered(self, ticket: int) -> None:
        """Record that the site served a request, or said why there is nothing to serve."""
        with self._lock:
            if ticket == self._round:
                self._in_a_row = self._paused = 0
                self._trial = False

    def unknown(self, ticket: int) -> None:
        """Record that the site did not answer a request."""
        with self._lock:
            if ticket == self._round:
                self._trial = False

    def refused(self, ticket: int, reason: str, retry_after_s: float | None) -> bool:
        """Record a refusal; return whether the site, rather than one clip, is to blame.

        Raises:
            BlockedError: this was the trial after the last pause.
        """
        with self._lock:
            if ticket != self._round:
                return True
            self._in_a_row += 1
            trial = self._paused > 0
            if trial or self._in_a_row >= self.params.refusals:
                if self._paused >= self.params.pauses:
                    message = f"The site refuses this client after {self._paused} pauses: {reason}."
                    raise BlockedError(message)
                self._pause(reason, retry_after_s)
            elif retry_after_s is not None:
                wait_s = min(retry_after_s, RETRY_AFTER_MAX_S)
                self._until_s = max(self._until_s, self.clock.now() + wait_s)
            return trial

    def _pause(self, reason: str, retry_after_s: float | None) -> None:
        grown_s = min(self.params.pause_s * 2**self._paused, self.params.longest_pause_s)
        wait_s = max(grown_s, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))
        self._until_s = self.clock.now() + wait_s
        self._paused += 1
        self._round += 1
        self._trial = False
        message = "pause %d of %d, %.0f s: the site refuses this client (%s)"
        logger.warning(message, self._paused, self.params.pauses, wait_s, reason)


class Hours:
    """The hours of the day, in local time, in which requests are made; may span midnight."""

    def __init__(self, first: float, last: float, clock: Clock) -> None:
        self.first = first
        self.last = last
        self.clock = clock

    def enter(self) -> None:
        """Wait until the hours begin."""
        left_h = self._until_open(self.clock.hour())
        if left_h:
            logger.info(
                "outside the hours %g to %g: pause of %.1f h", self.first, self.last, left_h
            )
        while left_h:
            self.clock.wait(min(left_h * 3600, 60.0))  # the machine may have slept meanwhile
            left_h = self._until_open(self.clock.hour())

    def _until_open(self, hour: float) -> float:
        length = (self.last - self.first) % 24 or 24.0
        since = (hour - self.first) % 24
        return 0.0 if since < length else 24.0 - since


class Gate:
    """All limits combined; every request to the site passes through it."""

    def __init__(self, params: NetworkParams, clock: Clock, rng: random.Random) -> None:
        self.hours = Hours(params.from_hour, params.to_hour, clock)
        self.bucket = TokenBucket(params.clips_per_hour, clock, rng)
        self.breaker = Breaker(params, clock)

    def enter(self) -> int:
        """Wait until a request may be made; return a ticket to report its answer with."""
        while True:
            self.hours.enter()
            self.breaker.wait()  # without taking a token
            self.bucket.take()
            ticket = self.breaker.enter()
            if ticket is not None:
                return ticket

    def answered(self, ticket: int) -> None:
        """Record that the site served a request."""
        self.breaker.answered(ticket)

    def failed(self, ticket: int, error: UnavailableError) -> bool:
        """Record that a request failed; return whether the site, rather than the clip, is to blame.

        Raises:
            BlockedError: the site keeps refusing this client.
        """
        if error.kind == "blocked":
            return self.breaker.refused(ticket, error.reason, error.retry_after_s)
        if error.kind == "transient":
            self.breaker.unknown(ticket)
        else:
            self.breaker.answered(ticket)
        return False


def back_off_s(
    attempt: int, first_s: float, retry_after_s: float | None, uniform: Callable[[], float]
) -> float:
    """Return how long to wait after attempt number `attempt`, counted from 1.

    It doubles with each attempt, varies by half either way, and is at least what the site asks for.
    """
    grown_s = first_s * 2 ** (attempt - 1) * (0.5 + uniform())
    return max(grown_s, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))
