"""Tables 1, 2 and 3 of the paper: published rows, and beside them those that were measured here.

`published_scores.csv` holds the paper's rows, and those of the random encoders from the results
that its authors have published (the paper gives them as "% over random" only). A mean is over all
tasks of a group or it is not given.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.report.paper import settings
from pipeline.report.score_table import (
    MODEL_NAMES,
    NOT_AVERAGED,
    ScoreTable,
    percent_over,
    value_of,
)

PUBLISHED = Path(__file__).with_name("published_scores.csv")
# Share of a score by which it may move when others score the same model again: HEAR's wav2vec2
# moved by 4 to 13 % (VoxLingua, 0.493 to 0.558) in six tasks.
NOISE = 0.14
TOP = 2  # highlighted in a column, as in the paper
Key = tuple[str, str]  # task, metric


@dataclass(frozen=True)
class Column:
    """One task and metric of a table."""

    task: str  # folder name
    name: str  # as in the paper
    metric: str
    is_averaged: bool = True
    is_error: bool = False  # lower is better

    @property
    def key(self) -> Key:
        """What a score is found by."""
        return self.task, self.metric


ACCURACY, MAP, PITCH = "top1_acc", "mAP", "pitch_acc"
ERROR_RATE = "segment_1s_er"
DCASE, MAESTRO = "dcase2016_task2-hear2021-full", "maestro-v3.0.0-5h"
GROUPS: dict[str, tuple[Column, ...]] = {
    "speech": (
        Column("tfds_crema_d-1.0.0-full", "CREMA-D", ACCURACY),
        Column("libricount-v1.0.0-hear2021-full", "LbC", ACCURACY),
        Column("speech_commands-v0.0.2-5h", "SPC-5h", ACCURACY),
        Column("speech_commands-v0.0.2-full", "SPC-F", ACCURACY),
        Column("vocal_imitation-v1.1.3-full", "VocIm", MAP),
        Column("vox_lingua_top10-hear2021-full", "VoxL", ACCURACY),
    ),
    "environmental sound": (
        Column("esc50-v2.0.0-full", "ESC-50", ACCURACY),
        Column("fsd50k-v1.0-full", "FSD50K", MAP),
        Column("gunshot_triangulation-v1.0-full", "Gunshot", ACCURACY),
    ),
    "music": (
        Column("beijing_opera-v1.0-hear2021-full", "Beijing", ACCURACY),
        Column("tfds_gtzan-1.0.0-full", "GTZAN-Genre", ACCURACY),
        Column("tfds_gtzan_music_speech-1.0.0-full", "GTZAN-M/S", ACCURACY),
        Column("mridangam_stroke-v1.5-full", "Mrd-Stroke", ACCURACY),
        Column("mridangam_tonic-v1.5-full", "Mrd-Tonic", ACCURACY),
        Column("nsynth_pitch-v2.2.3-5h", "NSynth 5h", PITCH),
        Column("nsynth_pitch-v2.2.3-50h", "NSynth 50h", PITCH),
    ),
    "timestamps": (
        Column(DCASE, "DCASE onset F", "event_onset_200ms_fms"),
        Column(DCASE, "DCASE error rate", ERROR_RATE, is_averaged=False, is_error=True),
        Column(MAESTRO, "MAESTRO onset F", "event_onset_50ms_fms"),
        Column(MAESTRO, "MAESTRO onset+offset F", "event_onset_offset_50ms_20perc_fms",
               is_averaged=False),
    ),
}  # fmt: skip
PAPER_TASKS = frozenset(column.task for columns in GROUPS.values() for column in columns)


@dataclass(frozen=True)
class Line:
    """The scores of one model."""

    model: str
    is_published: bool
    scores: Mapping[Key, float] = field(default_factory=dict)
    random: str = ""  # the model of the same origin with the weights that it started from
    note: str = ""  # seeds of a measured line

    @property
    def is_random(self) -> bool:
        """Whether these are the scores of random weights."""
        return self.model == self.random


@dataclass(frozen=True)
class Table:
    """One group of tasks with all models."""

    group: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def tasks(self) -> set[str]:
        """Tasks of the columns, of which one may have two."""
        return {column.task for column in self.columns}

    def mean(self, line: Line) -> float | None:
        """Return the mean of a line over all tasks, by their averaged columns.

        None if it lacks a score, or if a task has no such column.
        """
        averaged = [column for column in self.columns if column.is_averaged]
        values = [line.scores.get(column.key) for column in averaged]
        if None in values or {column.task for column in averaged} != self.tasks:
            return None
        return math.fsum(value or 0.0 for value in values) / len(values)

    def over_random(self, line: Line) -> float | None:
        """Return by how many percent the mean exceeds that of the same model's random weights."""
        found = [other for other in self.lines if other.model == line.random]
        same = [other for other in found if other.is_published == line.is_published]
        return percent_over(self.mean(line), self.mean(same[0])) if same else None

    def is_top(self, line: Line, column: Column) -> bool:
        """Return whether a score is among the two best of its column (ties included).

        Random weights do not compete: the paper's tables have no rows of them.
        """
        sign = -1 if column.is_error else 1
        trained = [other for other in self.lines if not other.is_random]
        scored = [sign * other.scores[column.key] for other in trained
                  if column.key in other.scores]  # fmt: skip
        if line.is_random or column.key not in line.scores:
            return False
        return sign * line.scores[column.key] >= sorted(scored, reverse=True)[:TOP][-1]


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
        better = self.published - self.measured if self.column.is_error else (
            self.measured - self.published
        )  # fmt: skip
        if abs(better) <= self.noise:
            return "within"
        return "above" if better > 0 else "below"


@dataclass(frozen=True)
class Comparison:
    """What was measured beside what was published."""

    tables: tuple[Table, ...]
    verdicts: tuple[Verdict, ...]  # of the pre-trained encoder
    warnings: tuple[str, ...]  # why it is not like for like
    means: Mapping[str, float | None]  # of the paper's groups that were asked for
    leaderboard: str  # CSV header and line of the pre-trained encoder


def compare(scores: ScoreTable, params: Mapping[str, Any], left_out: int) -> Comparison:
    """Return the paper's tables with the measured scores in them.

    Args:
        params: the parameters of the run by dotted key.
        left_out: number of clips in test splits, on which the encoder was not pre-trained.
    """
    lines = measured(scores)
    tasks = [row.task for row in scores.rows]
    ours = next(
        (line for line in lines if line.model == MODEL_NAMES["pretrained"]), Line("", False)
    )
    metrics = {row.task: row.metric for row in scores.rows if row.metric}
    return Comparison(
        tables=tuple(tables(lines, tasks, metrics)),
        verdicts=tuple(verdicts(ours, params["encoder"])),
        warnings=tuple(differences(scores, params, left_out)),
        means=group_means(ours, tasks),
        leaderboard=leaderboard(ours),
    )


def measured(scores: ScoreTable) -> list[Line]:
    """Return one line for each model that was scored."""
    lines = []
    for model in scores.models:
        found = {row.task: row.scores[model] for row in scores.rows if row.scores.get(model)}
        values: dict[Key, float | None] = {}
        for task, score in found.items():
            if score:
                values |= {(task, metric): value for metric, value in score.metrics.items()}
                values[task, score.metric] = value_of(score)
        seeds = {score.seeds for score in found.values() if score}
        note = "" if len(seeds) != 1 else f"{min(seeds)} seed{'' if seeds == {1} else 's'}"
        kept = {key: value for key, value in values.items() if value is not None}
        random = MODEL_NAMES["random"] if model in ("pretrained", "random") else ""
        lines.append(Line(MODEL_NAMES[model], False, kept, random, note))
    return lines


def differences(scores: ScoreTable, params: Mapping[str, Any], left_out: int) -> Iterator[str]:
    """Yield in which respects measured and published scores are not like for like."""
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
        yield f"{absent} of the paper's 18 tasks were not asked for. Means are of whole groups."
    if params["source"] != "audioset":
        yield f"Pre-trained on {params['source']!r}, the paper's on AudioSet."
    if left_out:
        yield f"Pre-trained without {left_out:,} clips of test splits, the paper's with all."
    if params["encoder"] not in settings.ENCODERS:
        yield f"The encoder is {params['encoder']!r}, the paper's in these tables are not."
        return
    other = [f"{key} = {ours} ({theirs})" for key, ours, theirs in settings.differing(params)]
    if other:
        yield f"Settings that are not those of the published ABT rows (theirs): {', '.join(other)}."
    if params["hear.mode"] != "reference":
        yield (
            "The published ABT and random rows were embedded by the authors' wrapper with its "
            "faults (docs/reference-faults.md, B1 to B5), which is hear.mode = reference."
        )


@cache
def published() -> tuple[Line, ...]:
    """Return the published lines."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    keys = {f"{c.task}:{c.metric}": c.key for columns in GROUPS.values() for c in columns}
    randoms = {r["encoder"]: r["model"] for r in records if r["model"].startswith("random")}
    return tuple(
        Line(
            model=record["model"],
            is_published=True,
            scores={key: float(record[name]) for name, key in keys.items() if record[name]},
            random=randoms.get(record["encoder"], ""),
            note=record["source"],
        )
        for record in records
    )


def tables(
    measured: Sequence[Line], tasks: Sequence[str], metrics: Mapping[str, str]
) -> list[Table]:
    """Return the paper's tables as far as its tasks were asked for, and one of all other tasks.

    Args:
        measured: lines of the models scored here.
        tasks: folder names asked for.
        metrics: first metric of each task that has a score.
    """
    found = [
        Table(group, columns, (*published(), *measured))
        for group, columns in GROUPS.items()
        if any(column.task in tasks for column in columns)
    ]
    others = [task for task in tasks if task not in PAPER_TASKS]
    columns = tuple(_own_column(task, metrics.get(task, "")) for task in others)
    return found + ([Table("other tasks", columns, tuple(measured))] if columns else [])


def _own_column(task: str, metric: str) -> Column:
    """Return the column of a task that is not one of the paper's; no metric: it has no score."""
    return Column(task, task, metric, metric not in NOT_AVERAGED, metric == ERROR_RATE)


def verdicts(line: Line, encoder: str) -> list[Verdict]:
    """Compare a measured line with the paper's of the same encoder, task by task."""
    names = {"audiontt": "ABT AudioNTT", "vitc": "ABT ViT_C-B (16x8)"}
    found = [other for other in published() if other.model == names.get(encoder)]
    return [
        Verdict(column, line.scores[column.key], found[0].scores[column.key])
        for columns in GROUPS.values()
        for column in columns
        if found and column.key in line.scores
    ]


def cells(table: Table, line: Line) -> Iterator[tuple[str, bool]]:
    """Yield the text of each cell of a line and whether it is among the best."""
    for column in table.columns:
        value = line.scores.get(column.key)
        digits = 4 if value is not None and value < 0.1 and column.task == MAESTRO else 3
        yield ("–" if value is None else f"{value:.{digits}f}"), table.is_top(line, column)
    mean, percent = table.mean(line), table.over_random(line)
    gain = f" ({percent:+.0f} %)" if percent is not None and not line.is_random else ""
    yield ("–" if mean is None else f"{mean:.3f}{gain}"), False


def header(table: Table) -> list[str]:
    """Return the names of a table's columns."""
    names = [column.name + (" ↓" if column.is_error else "") for column in table.columns]
    return ["model", "origin", *names, f"mean of {len(table.tasks)} (over random)"]


def origin(line: Line) -> str:
    """Return where a line's scores are from."""
    return f"{'published' if line.is_published else 'measured'}, {line.note}".removesuffix(", ")


def to_markdown(comparison: Comparison) -> str:
    """Return the tables for a README or an issue; the best two of a column are bold."""
    lines = [f"> {warning}\n" for warning in comparison.warnings]
    for table in comparison.tables:
        lines += [f"### {table.group.capitalize()}", ""]
        lines += [_row(header(table)), _row("---" for _ in header(table))]
        for line in table.lines:
            shown = (f"**{text}**" if top else text for text, top in cells(table, line))
            lines.append(_row([line.model, origin(line), *shown]))
        lines += ["", "Bold: the best two of a column, random weights aside.", ""]
    if comparison.verdicts:
        head = ["task", "measured", "published", "noise", "verdict"]
        lines += ["### The pre-trained encoder beside the paper's", "", _row(head)]
        lines.append(_row("---" for _ in head))
    for verdict in comparison.verdicts:
        values = verdict.measured, verdict.published, verdict.noise
        numbers = (f"{value:.3f}" for value in values)
        lines.append(_row([verdict.column.name, *numbers, verdict.text]))
    return "\n".join(lines).rstrip() + "\n"


def _row(values: Sequence[str] | Iterator[str]) -> str:
    return f"| {' | '.join(values)} |"


def to_csv(found: Sequence[Table]) -> str:
    """Return every score as one line: group, task, metric, model, origin, score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "task", "metric", "model", "origin", "score"])
    for table in found:
        for line in table.lines:
            for column in table.columns:
                if column.key in line.scores:
                    score = round(line.scores[column.key], 6)
                    writer.writerow([table.group, column.task, column.metric, line.model,
                                     origin(line), score])  # fmt: skip
    return text.getvalue()


def group_means(measured: Line, tasks: Sequence[str]) -> dict[str, float | None]:
    """Return the mean of a line in each of the paper's groups, for `dvc exp show`."""
    return {
        group.split()[0]: Table(group, columns, ()).mean(measured)
        for group, columns in GROUPS.items()
        if any(column.task in tasks for column in columns)
    }


def leaderboard(line: Line) -> str:
    """Return a CSV header and a line with the first metric of each of the 18 tasks.

    The public HEAR leaderboard has one line per model and one column per task; a task without a
    score is an empty field.
    """
    first: dict[str, Column] = {}
    for columns in GROUPS.values():
        for column in columns:
            first.setdefault(column.task, column)
    values = [line.scores.get(column.key) for column in first.values()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Model", *first])
    writer.writerow([line.model, *("" if v is None else round(v, 6) for v in values)])
    return text.getvalue()
