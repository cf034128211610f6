"""Section `leaks` of params.yaml: how pre-training clips in test splits are found and handled."""

from typing import Literal

from pydantic import Field

from pipeline.core.params import Section


class LeaksParams(Section):
    """Section `leaks`."""

    policy: Literal["exclude", "refuse", "report"]
    max_bit_error: float = Field(
        gt=0, lt=0.5
    )  # share of fingerprint bits; unrelated recordings: 0.5
    min_overlap_s: float = Field(ge=0.5, le=60)  # or most of the shorter clip
