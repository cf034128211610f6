"""When a request may be made to a web site: rate, hours of the day, pauses after refusals.

What yt-dlp's authors tell of the site (wiki, Extractors, 2026-04): a guest gets about 300
recordings an hour, an account about 2,000, 5 to 10 s apart; who asks more is refused, then banned.
Time is in seconds of a monotonic clock; every wait ends at once when the download is to stop.
"""

import logging
import random
import threading
import time
from collections.abc import Callable

from pipeline.core.settings import NetworkParams
from pipeline.corpus.fetch.failures import UnavailableError

logger = logging.getLogger(__name__)

JITTER = 0.5  # share by which the distance of two requests varies, so that they are no clockwork
POLL_S = 0.1  # how soon a thread notices that another one's trial has ended
RETRY_AFTER_MAX_S = 86_400.0  # a site that asks for longer than a day is taken to mean a day


class StoppedError(Exception):
    """The download is to end; what was under way is not recorded."""


class BlockedError(RuntimeError):
    """The site keeps refusing this client; the message says what happened."""


class Clock:
    """Real time; tests have one of their own."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def now(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    def hour(self) -> float:
        """Return the hour of the day, local time, with its fraction."""
        local = time.localtime()
        return local.tm_hour + local.tm_min / 60 + local.tm_sec / 3600

    def wait(self, seconds: float) -> None:
        """Wait.

        Raises:
            StoppedError: the download is to end.
        """
        if self.stop.wait(max(seconds, 0.0)):
            raise StoppedError


class TokenBucket:
    """Allows `per_hour` requests an hour, shared by all threads; 0 is no limit.

    The bucket holds one token, so that requests are spread evenly and none are saved up in a pause.
    """

    def __init__(self, per_hour: float, clock: Clock, rng: random.Random) -> None:
        self.per_hour = per_hour
        self.clock = clock
        self.rng = rng
        self._lock = threading.Lock()
        self._next_s = -float("inf")  # when the bucket has a token again

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
    """Stops all requests after several refusals in a row, for a time that grows.

    After a pause one request is tried; the others wait for its answer. If it is refused, too, the
    next pause is twice as long, and after `network.pauses` of them the download ends. Answers to
    requests that were made before the pause began count for nothing.
    """

    def __init__(self, params: NetworkParams, clock: Clock) -> None:
        self.params = params
        self.clock = clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._paused = 0  # pauses since the last answer
        self._until_s = -float("inf")
        self._trial = False  # whether the one request after a pause is under way
        self._round = 0

    def wait(self) -> None:
        """Wait until a request may be made."""
        while (left_s := self._left_s()) > 0:
            self.clock.wait(left_s)

    def enter(self) -> int | None:
        """Return the number that a request's answer is told with, None if it may not be made."""
        with self._lock:
            if self._left_s() > 0:
                return None
            self._trial = self._paused > 0
            return self._round

    def _left_s(self) -> float:
        left_s = self._until_s - self.clock.now()
        return max(left_s, POLL_S) if self._trial else left_s

    def answered(self, number: int) -> None:
        """Note that the site has served a request, or said why there is nothing to serve."""
        with self._lock:
            if number == self._round:
                self._in_a_row = self._paused = 0
                self._trial = False

    def unknown(self, number: int) -> None:
        """Note that a request had no answer from the site."""
        with self._lock:
            if number == self._round:
                self._trial = False

    def refused(self, number: int, reason: str, retry_after_s: float | None) -> bool:
        """Note a refusal; return whether it is the site's mood rather than one clip's fault.

        Raises:
            BlockedError: it comes after the last pause.
        """
        with self._lock:
            if number != self._round:
                return True
            self._in_a_row += 1
            trial = self._paused > 0
            if trial or self._in_a_row >= self.params.refusals:
                if self._paused >= self.params.pauses:
                    raise BlockedError(self._told(reason))
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
        told = "pause %d of %d, %.0f s: the site refuses this client (%s)"
        logger.warning(told, self._paused, self.params.pauses, wait_s, reason)

    def _told(self, reason: str) -> str:
        return f"The site refuses this client after {self._paused} pauses: {reason}."


class Hours:
    """The hours of the day, local time, in which requests are made; `first` may be the later."""

    def __init__(self, first: float, last: float, clock: Clock) -> None:
        self.first = first
        self.last = last
        self.clock = clock

    def enter(self) -> None:
        """Wait for them."""
        left_h = self._until_open(self.clock.hour())
        if left_h:
            logger.info(
                "outside the hours %g to %g: pause of %.1f h", self.first, self.last, left_h
            )
        while left_h:
            self.clock.wait(min(left_h * 3600, 60.0))  # a machine may have slept meanwhile
            left_h = self._until_open(self.clock.hour())

    def _until_open(self, hour: float) -> float:
        length = (self.last - self.first) % 24 or 24.0
        since = (hour - self.first) % 24
        return 0.0 if since < length else 24.0 - since


class Gate:
    """All of it: every request to the site goes through here."""

    def __init__(self, params: NetworkParams, clock: Clock, rng: random.Random) -> None:
        self.hours = Hours(params.from_hour, params.to_hour, clock)
        self.bucket = TokenBucket(params.clips_per_hour, clock, rng)
        self.breaker = Breaker(params, clock)

    def enter(self) -> int:
        """Wait until a request may be made; return the number that its answer is told with."""
        while True:
            self.hours.enter()
            self.breaker.wait()  # in which no token is taken
            self.bucket.take()
            number = self.breaker.enter()
            if number is not None:
                return number

    def answered(self, number: int) -> None:
        """Note that the site has served a request."""
        self.breaker.answered(number)

    def failed(self, number: int, error: UnavailableError) -> bool:
        """Note that a request failed; return whether the clip is not to blame.

        Raises:
            BlockedError: the site keeps refusing this client.
        """
        if error.kind == "blocked":
            return self.breaker.refused(number, error.reason, error.retry_after_s)
        if error.kind == "transient":
            self.breaker.unknown(number)
        else:
            self.breaker.answered(number)
        return False


def back_off_s(
    attempt: int, first_s: float, retry_after_s: float | None, uniform: Callable[[], float]
) -> float:
    """Return how long to wait after attempt number `attempt`, counted from 1.

    It doubles with each attempt and varies by a half either way; a site that names a time gets it.
    """
    grown_s = first_s * 2 ** (attempt - 1) * (0.5 + uniform())
    return max(grown_s, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))
