"""Findings on parameters, tools, devices and DVC's cache."""

import resource
from collections.abc import Callable, Iterator

import psutil
import torch

from pipeline.commands.doctor import cache, forecast, source_size
from pipeline.commands.doctor.finding import Finding, Level
from pipeline.config import Config, load_config
from pipeline.core import files
from pipeline.core.settings import cores
from pipeline.core.stage import EXPECTED_ERRORS
from pipeline.corpus.fetch import requirements

MIN_OPEN_FILES = 256
MIN_MEMORY = 3e9  # bytes; the sample run takes 2.2 GB, AudioSet's list 1.9 GB


def examine() -> Iterator[Finding]:
    """Yield all findings; with invalid parameters, only those that need none."""
    try:
        config = load_config()
    except EXPECTED_ERRORS as error:
        yield Finding("problem", "params", str(error))
        yield from memory()
        return
    yield Finding("ok", "params", f"valid; source = {config.source}")
    yield from fetching(config, source_size.address(config))
    gpus = list(gpu(config.compute.device))
    yield from gpus
    yield Finding("ok", "cores", str(cores()))
    yield from memory()
    yield open_files()
    sharing = cache.sharing()
    yield from sharing.findings()
    yield from forecast.findings(config, sharing, gpus[0].text)


def fetching(config: Config, url: str) -> Iterator[Finding]:
    """Yield the tools that fetch recordings; some are needed for YouTube alone."""
    is_youtube = requirements.is_youtube(url)
    worst: Level = "problem" if is_youtube else "warning"
    yield checked("ffmpeg", "problem", lambda: " ".join(reversed(requirements.ffmpeg())))
    max_days = config.network.max_tool_age_days
    yield checked("yt-dlp", worst, lambda: f"{requirements.check_age(max_days)} days old")
    if is_youtube:
        yield checked("javascript", worst, requirements.check_js_runtime)
    if config.network.cookies:
        yield checked(
            "cookies", "problem", lambda: requirements.check_cookies(config.network.cookies)
        )


def checked(subject: str, level: Level, check: Callable[[], str]) -> Finding:
    """Return the result of a check, or why it failed."""
    try:
        return Finding("ok", subject, check())
    except EXPECTED_ERRORS as error:
        return Finding(level, subject, str(error))


def gpu(device: str) -> Iterator[Finding]:
    """Yield each GPU that torch finds."""
    if not torch.cuda.is_available():
        text = "none that torch finds; pre-training runs on the CPU"
        if device == "cuda":
            yield Finding("problem", "gpu", f"{text}, which compute.device = cuda forbids")
        else:
            yield Finding("ok", "gpu", text)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield Finding("ok", "gpu", text)


def memory() -> Iterator[Finding]:
    """Yield how much memory there is."""
    state = psutil.virtual_memory()
    text = f"{state.total / 1e9:.1f} GB, {state.available / 1e9:.1f} GB of it available"
    if state.available < MIN_MEMORY:
        text += f"; less than {MIN_MEMORY / 1e9:g} GB: end other programs, or lower compute.workers"
        yield Finding("warning", "memory", text)
    else:
        yield Finding("ok", "memory", text)


def open_files() -> Finding:
    """Return how many files a process may open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < MIN_OPEN_FILES:
        return Finding("warning", "open files", files.open_files_hint())
    return Finding("ok", "open files", "no limit" if limit < 0 else str(limit))
