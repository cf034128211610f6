"""A clock that advances only while someone waits."""

import threading

from pipeline.corpus.fetch.rate_limit import Clock, StoppedError


class FakeClock(Clock):
    """Starts at noon; only `wait` lets time pass."""

    def __init__(self):
        super().__init__(threading.Event())
        self.seconds = 0.0

    def now(self):
        return self.seconds

    def hour(self):
        return (12 + self.seconds / 3600) % 24

    def wait(self, seconds):
        if self.stop.is_set():
            raise StoppedError
        self.seconds += max(seconds, 0.0)
