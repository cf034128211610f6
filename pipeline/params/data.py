"""Sections of params.yaml that the data stages read: sources, download, resample, logmel."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, field_validator, model_validator

from pipeline.core.params import Section

MAX_WORKERS = 1024
SCHEDULER = re.compile(r"((tcp|tls|ucx|ws|wss)://)?[^/\s]+:\d+")

Place = Annotated[str, Field(min_length=1)]  # a path; "" would be the repository itself


def _only(known: str, template: str) -> str:
    for found in re.findall(r"\{\w*\}", template):
        if found != known:
            raise ValueError(
                f"{template!r}: {found} stands for nothing, only {known} is replaced. Correct it."
            )
    return template


def _for_every_recording(url: str) -> str:
    if "{ytid}" not in url:
        raise ValueError(f"{url!r} must contain {{ytid}}, which stands for the id of a recording.")
    return _only("{ytid}", url)


def _for_a_subset(lists: str) -> str:
    return _only("{subset}", lists)


RecordingUrl = Annotated[str, AfterValidator(_for_every_recording)]


class SegmentListParams(Section):
    """Sections `sources.sample` and `sources.url`: recordings, and the segments wanted of them."""

    segments: Place  # AudioSet-format CSV
    url: RecordingUrl  # path or URL of a recording; {ytid} is its id
    clips: str  # list of the ids to take, "" for all; as in each of the sections below


class AudioSetParams(Section):
    """Section `sources.audioset`: Google's lists, and the site that has their recordings."""

    subsets: list[Literal["unbalanced_train", "balanced_train", "eval"]] = Field(min_length=1)
    lists: Annotated[Place, AfterValidator(_for_a_subset)]  # or address, of a {subset}'s list
    labels: Place  # or address, of class_labels_indices.csv
    url: RecordingUrl  # path or address of a recording; {ytid} is its id
    clips: str

    @model_validator(mode="after")
    def _for_every_one(self) -> "AudioSetParams":
        if len(set(self.subsets)) != len(self.subsets):
            raise ValueError(f"subsets = {self.subsets} must name each subset once.")
        if len(self.subsets) > 1 and "{subset}" not in self.lists:
            raise ValueError(f"lists = {self.lists!r} must contain {{subset}}, of which there are "
                             f"{len(self.subsets)}.")  # fmt: skip
        return self


class FolderParams(Section):
    """Section `sources.folder`: a tree of audio files."""

    path: Place  # file or folder
    max_clip_s: float = Field(ge=0, le=100_000)  # longer recordings are cut; 0: none is
    clips: str

    @field_validator("max_clip_s")
    @classmethod
    def _audible(cls, max_clip_s: float) -> float:
        if 0 < max_clip_s < 1:
            raise ValueError(f"{max_clip_s} s must be 0 (no cuts), or 1 s or more.")
        return max_clip_s


class Fsd50kParams(Section):
    """Section `sources.fsd50k`: FSD50K as published."""

    path: Place  # folder with FSD50K.dev_audio and FSD50K.ground_truth
    splits: list[Literal["train", "val"]] = Field(min_length=1)  # of the development set
    clips: str


class TarParams(Section):
    """Section `sources.tar`: WebDataset tars."""

    path: Place  # file or folder
    label_key: str  # in the JSON member of a sample
    clips: str


class ParquetParams(Section):
    """Section `sources.parquet`: AudioSet's mirrors on the Hugging Face Hub."""

    path: Place  # file or folder
    label_column: str  # "": none
    clips: str


class Hdf5Params(Section):
    """Section `sources.hdf5`: AudioSet packed for PANNs or PaSST."""

    path: Place  # file or folder
    sample_rate: int = Field(ge=0, le=10_000_000)  # Hz, of waveforms whose file does not say it
    classes: str  # CSV of AudioSet's ids by class number, "": none
    clips: str


SOURCES: dict[str, type[Section]] = {
    "sample": SegmentListParams,
    "url": SegmentListParams,
    "audioset": AudioSetParams,
    "folder": FolderParams,
    "fsd50k": Fsd50kParams,
    "tar": TarParams,
    "parquet": ParquetParams,
    "hdf5": Hdf5Params,
}


class DownloadParams(Section):
    """Section `download`."""

    max_failed: float = Field(ge=0, le=1)  # share of segments that may be unavailable
    publish_partial: bool  # publish what is there although clips were not tried yet
    # rows of the segment list per tar shard, here and downstream
    clips_per_shard: int = Field(ge=1, le=10_000_000)


class NetworkParams(Section):
    """Section `network`: how recordings are asked for; no stage re-runs for a change of it."""

    tries: int = Field(ge=1, le=100)  # attempts per clip and run for faults that may pass
    timeout_s: float = Field(gt=0, le=3600)  # without data before an attempt is given up
    backoff_s: float = Field(ge=0, le=3600)  # before the second attempt; doubles with each
    clips_per_hour: float = Field(ge=0, le=1_000_000)  # requests, all threads; 0 = no limit
    limit: int = Field(ge=0)  # clips that one run tries; 0 = all
    from_hour: float = Field(ge=0, lt=24)  # local time, from which requests are made
    to_hour: float = Field(ge=0, le=24)  # until then; equal to from_hour, or 0 to 24: always
    refusals: int = Field(ge=1, le=1000)  # in a row, that start a pause
    pause_s: float = Field(gt=0, le=86_400)  # first one; doubles with each
    longest_pause_s: float = Field(gt=0, le=86_400)
    pauses: int = Field(ge=0, le=1000)  # in a row, after which the stage stops
    cookies: str  # file in Netscape's format, of an account; empty: none
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


class ResampleParams(Section):
    """Section `resample`."""

    max_failed: float = Field(ge=0, le=1)  # share of clips that may be unusable
    min_duration_s: float = Field(gt=0, le=3600)  # shorter clips are skipped
    silence_db: float = Field(
        ge=-1000, le=0
    )  # peak level, dB of full scale, under which a clip is silent; -1000: none is
    max_clipped: float = Field(ge=0, le=1)  # share of samples at full scale; 1: no limit


class LogMelParams(Section):
    """Section `logmel`: the front end."""

    sample_rate: int = Field(ge=1, le=10_000_000)  # Hz
    n_fft: int = Field(ge=2, le=2**20)  # samples
    win_length: int = Field(ge=2)  # samples, at most n_fft
    hop_length: int = Field(ge=1)  # samples, at most win_length
    n_mels: int = Field(ge=1, le=4096)
    f_min: float = Field(ge=0)  # Hz
    f_max: float = Field(gt=0)  # Hz, at most half the sample rate

    @model_validator(mode="after")
    def _consistent(self) -> "LogMelParams":
        if self.win_length > self.n_fft:
            raise ValueError(
                f"win_length = {self.win_length} must not exceed n_fft = {self.n_fft}."
            )
        if self.hop_length > self.win_length:
            raise ValueError(
                f"hop_length = {self.hop_length} must not exceed win_length = {self.win_length}: "
                "the samples between two windows would count for nothing."
            )
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"f_min < f_max <= sample_rate / 2 is needed, got f_min = {self.f_min}, "
                f"f_max = {self.f_max}, sample_rate = {self.sample_rate}."
            )
        return self

    @model_validator(mode="after")
    def _no_empty_filter(self) -> "LogMelParams":
        """Every mel filter needs a frequency of the FFT between its edges; the low ones are narrow.

        Edges and frequencies are those of `pipeline.features`.
        """
        low, high = (2595 * math.log10(1 + f / 700) for f in (self.f_min, self.f_max))
        mels = [low + (high - low) * i / (self.n_mels + 1) for i in range(self.n_mels + 2)]
        edges = [700 * (10 ** (mel / 2595) - 1) for mel in mels]
        spacing = (self.sample_rate // 2) / (self.n_fft // 2)  # Hz
        for index, (left, right) in enumerate(zip(edges[:-2], edges[2:], strict=True)):
            if (math.floor(left / spacing) + 1) * spacing >= right:
                raise ValueError(
                    f"n_mels = {self.n_mels}: mel bin {index} ({left:.0f} to {right:.0f} Hz) would "
                    f"be empty, since the FFT has a frequency every {spacing:.1f} Hz only. Lower "
                    f"n_mels or raise n_fft = {self.n_fft}."
                )
        return self


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
