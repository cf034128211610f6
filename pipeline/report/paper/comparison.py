"""Measured scores beside the published ones: verdicts, and what makes them not comparable."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.paper import settings
from pipeline.report.paper.columns import GROUPS, PAPER_TASKS, Column
from pipeline.report.paper.tables import (
    ModelRow,
    Table,
    build_tables,
    group_means,
    measured_rows,
    published_rows,
)
from pipeline.report.score_file import MODEL_NAMES
from pipeline.report.score_table import ScoreTable

# Share of a score by which it may move when others score the same model again: HEAR's wav2vec2
# moved by 4 to 13 % (VoxLingua, 0.493 to 0.558) in six tasks.
NOISE = 0.14
PUBLISHED_MODELS = {"audiontt": "ABT AudioNTT", "vitc": "ABT ViT_C-B (16x8)"}  # by encoder


@dataclass(frozen=True)
class Verdict:
    """A measured score beside the published one of the same encoder."""

    column: Column
    measured: float
    published: float

    @property
    def noise(self) -> float:
        """Difference that the same model may show when it is scored again."""
        return NOISE * self.published

    @property
    def text(self) -> str:
        """How they compare, given the noise of the task."""
        gain = self.measured - self.published
        if abs(gain) <= self.noise:
            return "within"
        return "above" if (gain > 0) != self.column.is_error else "below"


@dataclass(frozen=True)
class Comparison:
    """What was measured beside what was published."""

    pretrained: ModelRow  # measured; without scores if the model was not requested
    tables: tuple[Table, ...]
    verdicts: tuple[Verdict, ...]  # of the pre-trained encoder
    warnings: tuple[str, ...]  # why they are not comparable
    means: Mapping[str, float | None]  # of the paper's groups that have a requested task


def compare(scores: ScoreTable, params: Mapping[str, Any], left_out: int) -> Comparison:
    """Return the paper's tables with the measured scores in them.

    Args:
        params: the parameters of the run by dotted key.
        left_out: number of clips in test splits, on which the encoder was not pre-trained.
    """
    measured = measured_rows(scores)
    tasks = [row.task for row in scores.rows]
    pretrained = next(
        (row for row in measured if row.model == MODEL_NAMES["pretrained"]), ModelRow("", False)
    )
    metrics = {row.task: row.metric for row in scores.rows if row.metric}
    return Comparison(
        pretrained=pretrained,
        tables=tuple(build_tables(measured, tasks, metrics)),
        verdicts=tuple(verdicts(pretrained, params["encoder"])),
        warnings=tuple(differences(scores, params, left_out)),
        means=group_means(pretrained, tasks),
    )


def verdicts(row: ModelRow, encoder: str) -> list[Verdict]:
    """Compare a measured row with the paper's of the same encoder, task by task."""
    if encoder not in PUBLISHED_MODELS:
        return []
    published = next(r for r in published_rows() if r.model == PUBLISHED_MODELS[encoder])
    return [
        Verdict(column, row.scores[column.key], published.scores[column.key])
        for columns in GROUPS.values()
        for column in columns
        if column.key in row.scores
    ]


def differences(scores: ScoreTable, params: Mapping[str, Any], left_out: int) -> Iterator[str]:
    """Yield the differences that make measured and published scores not comparable."""
    asked = PAPER_TASKS.intersection(row.task for row in scores.rows)
    if not asked:
        return
    if not scores.is_hear_protocol:
        grid, points = scores.protocol.grid, scores.protocol.grid_points
        yield (
            f"Scored with the grid {grid!r} and {points} grid points, not by HEAR's protocol "
            "(default, 8)."
        )
    if absent := len(PAPER_TASKS) - len(asked):
        yield f"{absent} of the paper's 18 tasks were not requested. Means are of whole groups."
    if params["source"] != "audioset":
        yield f"Pre-trained on {params['source']!r}, the paper's on AudioSet."
    if left_out:
        yield f"Pre-trained without {left_out:,} clips of test splits, the paper's with all."
    yield from _differing_settings(params)


def _differing_settings(params: Mapping[str, Any]) -> Iterator[str]:
    if params["encoder"] not in PUBLISHED_MODELS:
        yield f"The encoder is {params['encoder']!r}, which these tables of the paper do not have."
        return
    other = [f"{key} = {ours} ({theirs})" for key, ours, theirs in settings.differing(params)]
    if other:
        yield f"Settings that differ from the published ABT rows (theirs): {', '.join(other)}."
    if params["hear.mode"] != "reference":
        yield (
            "The published ABT and random rows were embedded by the authors' wrapper with its "
            "faults (docs/reference-faults.md, B1 to B5), which is hear.mode = reference."
        )
