"""Section `logmel` of params.yaml: the front end."""

import math

from pydantic import Field, model_validator

from pipeline.core.params import Section
from pipeline.core.shard_folder import rebuild_hint

STAGE = "logmel"  # writes the shards and their statistics
REMEDY = rebuild_hint(STAGE)


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

        Edges and frequencies are those of `pipeline.features.front_end`.
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
