"""Sections of params.yaml that the data stages read: sources, download, resample, logmel."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.params import Section

SOURCES = ("sample",)


class SourceParams(Section):
    """Section `sources.<name>`: where the recordings are and which segments of them are wanted."""

    segments: str  # AudioSet-format CSV
    url: str = Field(pattern=r"\{ytid\}")  # path or URL of a recording; {ytid} is its id


class DownloadParams(Section):
    """Section `download`."""

    max_failed: float = Field(ge=0, le=1)  # share of segments that may be unavailable
    tries: PositiveInt  # attempts per clip for faults that may pass
    timeout_s: PositiveFloat  # seconds without data before an attempt is given up
    clips_per_shard: PositiveInt  # rows of the segment list per tar shard, here and downstream


class ResampleParams(Section):
    """Section `resample`."""

    max_failed: float = Field(ge=0, le=1)  # share of clips that may be unusable
    min_duration_s: PositiveFloat  # shorter clips are skipped
    silence_db: float = Field(le=0)  # peak level, dB of full scale, under which a clip is silent


class LogMelParams(Section):
    """Section `logmel`: the front end."""

    sample_rate: PositiveInt  # Hz
    n_fft: PositiveInt  # samples
    win_length: PositiveInt  # samples
    hop_length: PositiveInt  # samples
    n_mels: PositiveInt
    f_min: float = Field(ge=0)  # Hz
    f_max: PositiveFloat  # Hz

    @model_validator(mode="after")
    def _consistent(self) -> "LogMelParams":
        if self.win_length > self.n_fft:
            raise ValueError(
                f"win_length = {self.win_length} must not exceed n_fft = {self.n_fft}."
            )
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"f_min < f_max <= sample_rate / 2 is needed, got f_min = {self.f_min}, "
                f"f_max = {self.f_max}, sample_rate = {self.sample_rate}."
            )
        return self


class ComputeParams(Section):
    """Section `compute`: where the work runs. Results do not depend on it; no stage re-runs."""

    device: Literal["auto", "cpu", "cuda"]
    workers: NonNegativeInt  # processes of the data stages; 0 = one per core
    connections: PositiveInt  # recordings that are fetched at the same time
