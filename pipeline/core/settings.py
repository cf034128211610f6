"""Sections `compute` and `network` of params.yaml: where the work runs and how sites are asked."""

import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, field_validator, model_validator

from pipeline.core.params import LocalPath, Section

MAX_WORKERS = 1024
SCHEDULER = re.compile(r"((tcp|tls|ucx|ws|wss)://)?[^/\s]+:\d+")


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _workers(value: Any) -> Any:
    if value != "dask" and not (type(value) is int and 0 <= value <= MAX_WORKERS):
        raise ValueError(
            f"{value!r} must be a number of processes from 0, one per core, to {MAX_WORKERS}, or "
            "dask."
        )
    return value


def _fast(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):  # to Python, 1 is True
        raise ValueError(f"{value!r} must be auto, true or false.")
    return value


class ComputeParams(Section):
    """Section `compute`: where and how the work runs; no stage re-runs for a change of it."""

    device: Literal["auto", "cpu", "cuda"]
    workers: Annotated[int | Literal["dask"], PlainValidator(_workers)]  # of the data stages
    scheduler: str  # address of Dask's; empty: a cluster on this machine
    embedding_cache_gb: float = Field(ge=0, le=10_000)  # of what tasks with the same audio share
    connections: int = Field(ge=1, le=256)  # recordings that are fetched at the same time
    devices: int = Field(ge=1, le=1024)  # processes of pre-training, one GPU each
    fast: Annotated[
        bool | Literal["auto"], PlainValidator(_fast)
    ]  # bfloat16, compiled, captured; auto: on a GPU
    deterministic: bool  # bit for bit the same results on a GPU
    features: Literal["auto", "device", "host", "disk"]  # where they are kept while training
    checkpoint_minutes: float = Field(ge=0, le=100_000)  # between two checkpoints
    checkpoints: int = Field(ge=1, le=1000)  # kept

    @field_validator("scheduler")
    @classmethod
    def _address(cls, scheduler: str) -> str:
        if scheduler and not SCHEDULER.fullmatch(scheduler):
            raise ValueError(
                f"{scheduler!r} must be the address of a Dask scheduler such as "
                "tcp://192.168.0.7:8786, or empty for a cluster on this machine."
            )
        return scheduler

    @model_validator(mode="after")
    def _possible(self) -> "ComputeParams":
        if self.device == "cpu" and self.fast is True:
            raise ValueError("fast = true needs a GPU, but device = cpu. Set fast to auto.")
        return self

    @property
    def local_workers(self) -> int:
        """Processes or threads of what is done on this machine alone; 0 = one per core."""
        return 0 if isinstance(self.workers, str) else self.workers


class NetworkParams(Section):
    """Section `network`: how recordings are asked for; no stage re-runs for a change of it."""

    tries: int = Field(ge=1, le=100)  # attempts per clip and run for faults that may pass
    timeout_s: float = Field(gt=0, le=3600)  # without data before an attempt is given up
    look_up_mb: float = Field(gt=0, le=100_000)  # read to find one recording's media
    backoff_s: float = Field(ge=0, le=3600)  # before the second attempt; doubles with each
    clips_per_hour: float = Field(ge=0, le=1_000_000)  # requests, all threads; 0 = no limit
    limit: int = Field(ge=0)  # clips that one run tries; 0 = all
    from_hour: float = Field(ge=0, lt=24)  # local time, from which requests are made
    to_hour: float = Field(ge=0, le=24)  # until then; equal to from_hour, or 0 to 24: always
    refusals: int = Field(ge=1, le=1000)  # in a row, that start a pause
    pause_s: float = Field(gt=0, le=86_400)  # first one; doubles with each
    longest_pause_s: float = Field(gt=0, le=86_400)
    pauses: int = Field(ge=0, le=1000)  # in a row, after which the stage stops
    cookies: LocalPath  # file in Netscape's format, of an account; empty: none
    proxy: str  # http(s)://[user:password@]host:port; empty: none
    max_tool_age_days: int = Field(ge=0)  # of yt-dlp, where YouTube is asked; 0 = any

    @field_validator("proxy")
    @classmethod
    def _one_that_ffmpeg_knows(cls, proxy: str) -> str:
        if proxy and not proxy.startswith(("http://", "https://")):
            raise ValueError(
                f"{proxy!r} must begin with http:// or https://: FFmpeg, which reads the media, "
                "knows no other proxy and would go past it."
            )
        return proxy

    @model_validator(mode="after")
    def _growing(self) -> "NetworkParams":
        if self.longest_pause_s < self.pause_s:
            raise ValueError(
                f"longest_pause_s = {self.longest_pause_s} must not be shorter than "
                f"pause_s = {self.pause_s}."
            )
        return self
