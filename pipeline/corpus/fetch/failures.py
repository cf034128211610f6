"""Why a clip is unavailable: the ledger's classes, recognized in messages of yt-dlp and FFmpeg.

gone        removed, private, terminated, 404, 410, 451
geo         not offered in this country
login       needs an account, a proof of age or a membership; 401, 403
blocked     the site refuses this client for now; 429, captcha
transient   may pass: time-outs, broken connections, 5xx, 403 of the media URL
no_audio    the address holds no audio, but a web page for example
corrupt     the recording is damaged
short       the recording ends before the segment begins
bad_address the address leads in circles, to a page without an end, or to files of this machine
too_large   the clip has more bytes than `download.max_clip_mb` allows
"""

import errno
import os
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from yt_dlp.networking.exceptions import HTTPError
from yt_dlp.utils import GeoRestrictedError, UnsupportedError

STAGE = "download"  # in which clips fail for these reasons
GONE = {404, 410, 451}
LOGIN = {401, 403, 407}
BLOCKED = {429}

# The first match counts: "Sign in to confirm you're not a bot" is not about an account.
EXTRACTION_MESSAGES = [
    ("bad_address", r"file://|no connection adapters|unsupported url scheme|unknown url type"),
    ("blocked", r"not a bot|captcha|rate.?limit|too many requests"),
    ("geo", r"in your (country|location|region)|geo.?restrict"),
    ("gone", r"private video|removed|terminated|no longer available|video unavailable|copyright"),
    ("gone", r"does(n't| not) exist|deleted|not found|is private|drm.protected"),
    ("login", r"confirm your age|sign in|log.?in|members.only|join this channel|age.restricted"),
    ("login", r"requires payment"),
]
CUTTING_MESSAGES = [
    ("bad_address", r"protocol '.*' not on whitelist"),
    ("blocked", r"returned 429|too many requests"),
    ("login", r"returned 401"),
    ("transient", r"returned (403|5XX)|timed out|reset by peer|refused|broken pipe"),
    ("transient", r"ends prematurely|input/output error|unreachable|failed to resolve"),
    ("gone", r"returned 4(04|XX)|no such file"),
    ("no_audio", r"matches no streams|does not contain any stream"),
]

CONTENT = {"no_audio", "corrupt", "short"}  # may also be caused by a broken transfer
# Faults of this machine, which would fail every clip.
OF_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
MEDIA_REFUSED = "returned 403"  # the media URL has expired; looking the recording up gives another


class UnavailableError(Exception):
    """An unavailable clip: `kind` is its status in the ledger, `reason` says why.

    `retry_after_s` is how long the site asks clients to wait, None if it does not say.
    """

    def __init__(self, kind: str, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.tries = 1  # attempts made
        self.is_excused = False  # whether the site, not this clip, is to blame


def tries_of(error: UnavailableError, tries: int) -> int:
    """Return how often a clip may fail like this in one run.

    Transient failures: `tries`. Refused media, which are looked up again, and bad content, which
    may be the server's fault: twice. Anything else: once.
    """
    if error.kind == "transient":
        return min(tries, 2) if MEDIA_REFUSED in error.reason else tries
    return 2 if error.kind in CONTENT else 1


def classify_extraction(error: BaseException) -> UnavailableError:
    """Return the class and reason of an error that yt-dlp raised for a recording's address."""
    check_machine(error)
    text = _essence(str(error))
    for cause in _causes(error):
        if isinstance(cause, HTTPError):
            cause.close()  # yt-dlp leaves the connection open
            if cause.redirect_loop:
                return UnavailableError("bad_address", "the address redirects without an end")
            wait_s = retry_after_s(cause.response.headers.get("Retry-After"))
            return UnavailableError(_class_of_status(cause.status), text, wait_s)
        if isinstance(cause, GeoRestrictedError):
            return UnavailableError("geo", text)
        if isinstance(cause, UnsupportedError):
            return UnavailableError("no_audio", "the address leads to a page, not to a recording")
    return UnavailableError(_match(EXTRACTION_MESSAGES, text) or "transient", text)


def check_machine(error: BaseException) -> None:
    """Stop at a fault of this machine, for which no recording is to blame.

    Raises:
        OSError: the disk is full, or too many files are open.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in OF_MACHINE:
            raise _fault_of_machine(cause.errno)


def _fault_of_machine(number: int) -> OSError:
    return OSError(number, f"{os.strerror(number)} while a clip was fetched or read")


def retry_after_s(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or as a date."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max((date - datetime.now(UTC)).total_seconds(), 0.0) if date.tzinfo else None


def classify_cutting(stderr: str) -> UnavailableError:
    """Return the class and reason of what FFmpeg wrote when it could not cut a segment.

    Raises:
        OSError: see `check_machine`.
    """
    for number in OF_MACHINE:
        if os.strerror(number) in stderr:
            raise _fault_of_machine(number)
    lines = [_essence(line) for line in stderr.splitlines() if line.strip()]
    for kind, pattern in CUTTING_MESSAGES:
        for line in lines:
            if re.search(pattern, line, re.IGNORECASE):
                return UnavailableError(kind, line)
    return UnavailableError("corrupt", lines[0] if lines else "FFmpeg failed without a message")


def check_damage(stderr: str) -> None:
    """Stop if FFmpeg skipped damaged parts of a recording, after which times may be wrong.

    Raises:
        UnavailableError: it did.
    """
    for line in stderr.splitlines():
        if "CRC mismatch" in line:
            raise UnavailableError("corrupt", f"the recording is damaged: {_essence(line)}")


def _class_of_status(status: int) -> str:
    for kind, statuses in (("gone", GONE), ("login", LOGIN), ("blocked", BLOCKED)):
        if status in statuses:
            return kind
    return "transient"


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and its causes; yt-dlp keeps some in `exc_info` and `cause`."""
    causes: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or any(current is cause for cause in causes):
            continue
        causes.append(current)
        exc_info = getattr(current, "exc_info", None) or (None, None, None)
        pending += [getattr(current, "cause", None), exc_info[1]]
        pending += [current.__cause__, current.__context__]
    return causes


def _match(messages: list[tuple[str, str]], text: str) -> str | None:
    return next((k for k, pattern in messages if re.search(pattern, text, re.IGNORECASE)), None)


def _essence(text: str) -> str:
    """Drop what varies between clips, runs or machines, and colors."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"\[\S+ @ 0x[0-9a-f]+\] ", "", text)  # FFmpeg's component and its address
    text = re.sub(r"^ERROR: (\[\S+\] )?([^\s:]+: )?", "", text)  # yt-dlp's extractor and id
    text = re.sub(r" \(caused by .*", "", text, flags=re.DOTALL)
    return " ".join(text.split())
