"""Section `score` of params.yaml: hear-eval-kit's protocol."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.core.params import Section

GRID_SIZES = {"default": 16, "fast": 64, "faster": 64}  # combinations in hear-eval-kit's grids


class ScoreParams(Section):
    """Section `score`: hear-eval-kit's protocol."""

    engine: Literal["heareval", "batched"]
    grid: Literal["default", "fast", "faster"]
    grid_points: int = Field(ge=1)  # combinations to try
    seeds: int = Field(ge=1, le=100)  # repetitions, each with another seed

    @model_validator(mode="after")
    def _inside_the_grid(self) -> "ScoreParams":
        size = GRID_SIZES[self.grid]
        if self.grid_points > size:
            raise ValueError(
                f"grid_points = {self.grid_points}: the grid {self.grid!r} has only {size} "
                "settings to try (HEAR's protocol tries 8 of its default grid)."
            )
        return self
