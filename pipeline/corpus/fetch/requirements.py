"""Check the programs that fetch recordings: are they installed and recent enough?

A fault of this machine would fail every clip, so it is reported before the first request. FFmpeg
comes with imageio-ffmpeg, unless IMAGEIO_FFMPEG_EXE names another. YouTube changes its protocol
every few weeks, so an old yt-dlp soon fails; since late 2025 it also needs a JavaScript runtime.
"""

import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import urlsplit

import imageio_ffmpeg
import yt_dlp.version
from yt_dlp.globals import supported_js_runtimes

from pipeline.core import files
from pipeline.core.settings import NetworkParams

JS_RUNTIMES = ("deno", "node")  # in the order in which yt-dlp tries them
YOUTUBE = ("youtube.com", "youtu.be", "youtube-nocookie.com")
RANGES = "-request_size"  # FFmpeg's option, since 8.1, to read a recording in small ranges
MIN_FREE_BYTES = 100_000_000  # a few dozen clips under way
UPDATE = "`pip install -U 'yt-dlp[default,deno]'`; it re-runs nothing and loses no clip"


class ToolError(RuntimeError):
    """This machine lacks what fetching needs; the message says how to fix it."""


def is_youtube(url: str) -> bool:
    """Return whether an address is YouTube's."""
    host = urlsplit(url).hostname or ""
    return any(host == name or host.endswith(f".{name}") for name in YOUTUBE)


def ffmpeg() -> tuple[str, str]:
    """Return path and version of the FFmpeg that cuts and decodes.

    Raises:
        ToolError: there is none, it does not run, or it is older than 8.1.
    """
    remedy = "Run `pip install --force-reinstall imageio-ffmpeg`, or unset IMAGEIO_FFMPEG_EXE."
    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
        version = _output(path, "-version").split()[2]
        options = _output(path, "-v", "error", "-h", "protocol=http")
    except (RuntimeError, OSError, IndexError, subprocess.SubprocessError) as error:
        raise ToolError(f"FFmpeg does not run: {error}. {remedy}") from error
    if RANGES not in options:
        raise ToolError(f"{path} is FFmpeg {version}, which lacks {RANGES}; 8.1 has it. {remedy}")
    return path, version


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return result.stdout


def yt_dlp_version() -> str:
    """Return yt-dlp's version, which is the date of its release."""
    return str(yt_dlp.version.__version__)


def age_days(version: str, today: date) -> int:
    """Return the age of a release: version 2026.10.26 is of October 26, 2026."""
    year, month, day, *_ = (int(part) for part in version.split("."))
    return (today - date(year, month, day)).days


def js_runtimes() -> Iterator[tuple[str, str, bool]]:
    """Yield name and version of each installed runtime, and whether yt-dlp supports it."""
    for name in JS_RUNTIMES:
        info = supported_js_runtimes.value[name]().info
        if info is not None:
            yield name, info.version, info.supported


def check_age(max_days: int) -> int:
    """Return the age of yt-dlp in days.

    Raises:
        ToolError: it is older than `max_days`, unless that is 0.
    """
    version = yt_dlp_version()
    days = age_days(version, datetime.now(UTC).date())
    if max_days and days > max_days:
        raise ToolError(
            f"yt-dlp {version} is {days} days old, more than network.max_tool_age_days = "
            f"{max_days}: YouTube will not serve it for long. Run {UPDATE}."
        )
    return days


def check_js_runtime() -> str:
    """Return name and version of the JavaScript runtime that yt-dlp uses for YouTube.

    Raises:
        ToolError: none is installed, or none is recent enough.
    """
    runtimes = list(js_runtimes())
    for name, version, is_supported in runtimes:
        if is_supported:
            return f"{name} {version}"
    too_old = [f"{name} {version} is too old" for name, version, _ in runtimes]
    raise ToolError(
        "YouTube needs a JavaScript runtime, at least deno 2.3 or node 22: "
        f"{', '.join(too_old) or 'none found'}. "
        "Run `pip install deno`."
    )


def check_cookies(path: str) -> str:
    """Return the path of an account's cookies; "" means none.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if path and not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no {path}; correct network.cookies in params.yaml, the cookies.txt of an "
            "account, or leave it empty."
        )
    return path


def check_fetching(url: str, folder: Path, network: NetworkParams) -> None:
    """Stop if this machine cannot fetch recordings from `url` into `folder`.

    Raises:
        ToolError: a tool is missing or too old.
        OSError: the disk is full.
    """
    ffmpeg()
    if is_youtube(url):
        check_age(network.max_tool_age_days)
        check_js_runtime()
    free = files.free_bytes(folder)
    if free < MIN_FREE_BYTES:
        raise OSError(
            f"{free / 1e6:.0f} MB are free in {folder}, where clips are kept; "
            f"{MIN_FREE_BYTES / 1e6:.0f} MB are needed to begin. Free space on that disk, or work "
            "on a larger one; `python -m pipeline.commands.queue status` says how much space all "
            "clips will take."
        )
