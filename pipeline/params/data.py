"""Sections of params.yaml that the data stages read: sources, download, resample, logmel."""

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.params import Section

SOURCES = ("sample",)


class SourceParams(Section):
    """Section `sources.<name>`: where the recordings are and which segments of them are wanted."""

    segments: str  # AudioSet-format CSV
    url: str  # path or URL of a recording; {ytid} is its id

    @field_validator("url")
    @classmethod
    def _for_every_recording(cls, url: str) -> str:
        if "{ytid}" not in url:
            raise ValueError(
                f"{url!r} must contain {{ytid}}, which stands for the id of a recording."
            )
        return url


class DownloadParams(Section):
    """Section `download`."""

    max_failed: float = Field(ge=0, le=1)  # share of segments that may be unavailable
    tries: int = Field(ge=1, le=100)  # attempts per clip for faults that may pass
    timeout_s: float = Field(gt=0, le=3600)  # without data before an attempt is given up
    # rows of the segment list per tar shard, here and downstream
    clips_per_shard: int = Field(ge=1, le=10_000_000)


class ResampleParams(Section):
    """Section `resample`."""

    max_failed: float = Field(ge=0, le=1)  # share of clips that may be unusable
    min_duration_s: float = Field(gt=0, le=3600)  # shorter clips are skipped
    silence_db: float = Field(
        ge=-1000, le=0
    )  # peak level, dB of full scale, under which a clip is silent


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


class ComputeParams(Section):
    """Section `compute`: where and how the work runs; no stage re-runs for a change of it."""

    device: Literal["auto", "cpu", "cuda"]
    workers: int = Field(ge=0, le=1024)  # processes of the data stages; 0 = one per core
    connections: int = Field(ge=1, le=256)  # recordings that are fetched at the same time
    devices: int = Field(ge=1, le=1024)  # processes of pre-training, one GPU each
    fast: Literal["auto", True, False]  # bfloat16, compiled, captured; auto: on a GPU
    deterministic: bool  # bit for bit the same results on a GPU
    features: Literal["auto", "device", "host", "disk"]  # where they are kept while training
    checkpoint_minutes: float = Field(ge=0, le=100_000)  # between two checkpoints
    checkpoints: int = Field(ge=1, le=1000)  # kept

    @model_validator(mode="after")
    def _possible(self) -> "ComputeParams":
        if self.device == "cpu" and self.fast is True:
            raise ValueError("fast = true needs a GPU, but device = cpu. Set fast to auto.")
        return self
