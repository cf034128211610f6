"""Parameters, tools, devices and DVC's cache, one finding each."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psutil
import torch

from pipeline.commands.doctor import Finding, cache, corpus, forecast
from pipeline.config import Config, load_config
from pipeline.core.settings import cores
from pipeline.core.stage import EXPECTED_ERRORS
from pipeline.corpus.fetch import requirements

MIN_MEMORY = 3e9  # bytes; the sample run takes 2.2 GB, AudioSet's list 1.9 GB


def examine() -> Iterator[Finding]:
    """Yield the findings; without valid parameters, those that need none."""
    try:
        config = load_config()
    except EXPECTED_ERRORS as error:
        yield Finding("problem", "params", str(error))
        yield from memory()
        return
    yield Finding("ok", "params", f"valid; source = {config.source}")
    yield from fetching(config, corpus.address(config))
    gpus = list(gpu(config.compute.device))
    yield from gpus
    yield Finding("ok", "cores", str(cores()))
    yield from memory()
    sharing = cache.sharing()
    yield from sharing.findings()
    yield from forecast.findings(config, sharing, gpus[0].text)


def fetching(config: Config, url: str) -> Iterator[Finding]:
    """Yield the tools that fetch recordings; YouTube's own matter where it is asked."""
    is_youtube = requirements.is_youtube(url)
    worst = "problem" if is_youtube else "warning"
    yield checked("ffmpeg", "problem", lambda: " ".join(reversed(requirements.ffmpeg())))
    max_days = config.network.max_tool_age_days
    yield checked("yt-dlp", worst, lambda: aged(max_days))
    if is_youtube:
        yield checked("javascript", worst, requirements.check_js_runtime)
    if config.network.cookies:
        yield checked("cookies", "problem", lambda: cookies(config.network.cookies))


def checked(subject: str, level: Any, check: Callable[[], str]) -> Finding:
    """Return what a check says: its answer, or why it failed."""
    try:
        return Finding("ok", subject, check())
    except EXPECTED_ERRORS as error:
        return Finding(level, subject, str(error))


def aged(max_days: int) -> str:
    """Return how old yt-dlp is.

    Raises:
        ToolError: too old.
    """
    requirements.check_age(max_days)
    return (
        f"{requirements.age_days(requirements.yt_dlp_version(), datetime.now(UTC).date())} days old"
    )


def cookies(path: str) -> str:
    """Return the file of an account's cookies.

    Raises:
        FileNotFoundError: there is none.
    """
    requirements.check_cookies(path)
    return path


def gpu(device: str) -> Iterator[Finding]:
    """Yield each GPU that torch finds."""
    if not torch.cuda.is_available():
        told = "none that torch finds; pre-training runs on the CPU"
        if device == "cuda":
            yield Finding("problem", "gpu", f"{told}, which compute.device = cuda forbids")
        else:
            yield Finding("ok", "gpu", told)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield Finding("ok", "gpu", text)


def memory() -> Iterator[Finding]:
    """Yield how much memory there is."""
    found = psutil.virtual_memory()
    told = f"{found.total / 1e9:.1f} GB, {found.available / 1e9:.1f} GB of it available"
    if found.available < MIN_MEMORY:
        told += f"; less than {MIN_MEMORY / 1e9:g} GB: end other programs, or lower compute.workers"
        yield Finding("warning", "memory", told)
    else:
        yield Finding("ok", "memory", told)
