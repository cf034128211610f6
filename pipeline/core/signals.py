"""What a stage does on SIGINT and SIGTERM, from before its imports until it ends."""

import os
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130  # exit status, as a shell's after Ctrl-C

Handler = Callable[[int, FrameType | None], None]


def exit_while_importing() -> None:
    """Exit with a message on a signal: nothing has begun yet. Imports take seconds."""

    def leave(signum: int, frame: FrameType | None) -> None:
        os.write(2, b"Interrupted before the stage began; nothing was published. Run it again.\n")
        os._exit(INTERRUPTED)

    _handle(leave)


def raise_keyboard_interrupt() -> None:
    """Raise a KeyboardInterrupt on a signal."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    _handle(interrupt)


def ignore() -> None:
    """Ignore signals: what is left is a message, or the end of the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _handle(handler: Handler) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background job, for one
            signal.signal(number, handler)
