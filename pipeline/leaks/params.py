"""Section `leaks` of params.yaml: clips of the pre-training data that are in test splits."""

from typing import Literal

from pydantic import Field

from pipeline.core.params import Section


class LeaksParams(Section):
    """Section `leaks`."""

    policy: Literal["exclude", "refuse", "report"]
    max_bit_error: float = Field(gt=0, lt=0.5)  # share of the fingerprints' bits; unrelated: 0.5
    min_overlap_s: float = Field(ge=0.5, le=60)  # seconds, or most of the shorter clip
