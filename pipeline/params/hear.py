"""Sections of params.yaml that the evaluation reads: hear, score, probe, report."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.params import Section
from pipeline.params.data import LogMelParams

GRID_SIZES = {"default": 16, "fast": 64, "faster": 64}  # settings in hear-eval-kit's grids


def _distinct(tasks: list[str]) -> list[str]:
    repeated = sorted({task for task in tasks if tasks.count(task) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} stands more than once. Remove the repetition.")
    return tasks


Tasks = Annotated[list[str], AfterValidator(_distinct)]  # folder names in the HEAR format


class HearParams(Section):
    """Section `hear`."""

    source: Literal["sample"]  # tasks are in data/<source>/tasks
    tasks: Tasks = Field(min_length=1)
    normalization: Literal["dataset"]
    window_ms: float = Field(gt=0, le=3_600_000)  # of a timestamp embedding
    hop_ms: float = Field(gt=0, le=3_600_000)  # between timestamps


def front_end_hops(key: str, milliseconds: float, log_mel: LogMelParams) -> int:
    """Return a duration of `hear` in hops of the front end.

    A timestamp's window is a slice of the clip's one STFT, so window and hop must be whole.

    Raises:
        ValueError: the duration is no whole number of hops.
    """
    hops = milliseconds * log_mel.sample_rate / 1000 / log_mel.hop_length
    if hops < 1 or abs(hops - round(hops)) > 1e-6:
        step = 1000 * log_mel.hop_length / log_mel.sample_rate
        raise ValueError(
            f"hear.{key} = {milliseconds} ms is {hops:g} hops of the front end, which must be a "
            f"whole number from 1 up: take a multiple of {step:g} ms."
        )
    return round(hops)


class ScoreParams(Section):
    """Section `score`: hear-eval-kit's protocol."""

    engine: Literal["heareval", "batched"]
    grid: Literal["default", "fast", "faster"]
    grid_points: int = Field(ge=1)  # settings that are tried
    seeds: int = Field(ge=1, le=100)  # repetitions with other random numbers

    @model_validator(mode="after")
    def _inside_the_grid(self) -> "ScoreParams":
        size = GRID_SIZES[self.grid]
        if self.grid_points > size:
            raise ValueError(
                f"grid_points = {self.grid_points}: the grid {self.grid!r} has only {size} "
                "settings to try (HEAR's protocol tries 8 of its default grid)."
            )
        return self


class ProbeParams(Section):
    """Section `probe`: quick scores of the encoders that pre-training keeps."""

    tasks: Tasks  # scene tasks among hear.tasks; empty: no probe
    neighbors: int = Field(ge=1, le=100_000)  # of the kNN classifier
    c: float = Field(gt=0, le=1e6)  # of the logistic regression: inverse strength of its L2 penalty


class ReportParams(Section):
    """Section `report`."""

    clips: int = Field(ge=1, le=100)  # shown with their two views
