"""Tables 1, 2 and 3 of the paper: published rows, and beside them those that were measured here.

`published_scores.csv` holds the paper's rows, and those of the random encoders from the results
that its authors have published (the paper gives them as "% over random" only). A mean is over all
tasks of a group or it is not given.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pipeline.report.paper.columns import ERROR_RATE, GROUPS, PAPER_TASKS, Column, Key
from pipeline.report.score_file import MODEL_NAMES, NOT_AVERAGED, percent_over, value_of
from pipeline.report.score_table import ScoreTable

PUBLISHED = Path(__file__).with_name("published_scores.csv")
TOP = 2  # highlighted in a column, as in the paper


@dataclass(frozen=True)
class ModelRow:
    """The scores of one model."""

    model: str
    is_published: bool
    scores: Mapping[Key, float] = field(default_factory=dict)
    random: str = ""  # the model of the same origin with the weights that it started from
    note: str = ""  # source of a published row, seeds of a measured one

    @property
    def is_random(self) -> bool:
        """Whether these are the scores of random weights."""
        return self.model == self.random

    @property
    def origin(self) -> str:
        """Where the scores are from."""
        return f"{'published' if self.is_published else 'measured'}, {self.note}".removesuffix(", ")


@dataclass(frozen=True)
class Table:
    """One group of tasks with all models."""

    group: str
    columns: tuple[Column, ...]
    rows: tuple[ModelRow, ...]

    @property
    def tasks(self) -> set[str]:
        """Tasks of the columns; a task may have two columns."""
        return {column.task for column in self.columns}

    def mean(self, row: ModelRow) -> float | None:
        """Return the mean of a row over all tasks, by their averaged columns.

        None if it lacks a score, or if a task has no such column.
        """
        averaged = [column for column in self.columns if column.is_averaged]
        values = [row.scores.get(column.key) for column in averaged]
        if None in values or {column.task for column in averaged} != self.tasks:
            return None
        return math.fsum(value or 0.0 for value in values) / len(values)

    def over_random(self, row: ModelRow) -> float | None:
        """Return by how many percent the mean exceeds that of the same model's random weights."""
        baselines = [
            other
            for other in self.rows
            if (other.model, other.is_published) == (row.random, row.is_published)
        ]
        return percent_over(self.mean(row), self.mean(baselines[0])) if baselines else None

    def is_top(self, row: ModelRow, column: Column) -> bool:
        """Return whether a score is among the two best of its column (ties included).

        Random weights do not compete: the paper's tables have no rows of them.
        """
        if row.is_random or column.key not in row.scores:
            return False
        sign = -1 if column.is_error else 1
        trained = [other.scores for other in self.rows if not other.is_random]
        scores = [sign * scores[column.key] for scores in trained if column.key in scores]
        return sign * row.scores[column.key] >= sorted(scores, reverse=True)[:TOP][-1]


@cache
def published_rows() -> tuple[ModelRow, ...]:
    """Return the published rows."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    keys = {f"{c.task}:{c.metric}": c.key for columns in GROUPS.values() for c in columns}
    randoms = {r["encoder"]: r["model"] for r in records if r["model"].startswith("random")}
    return tuple(
        ModelRow(
            model=record["model"],
            is_published=True,
            scores={key: float(record[name]) for name, key in keys.items() if record[name]},
            random=randoms.get(record["encoder"], ""),
            note=record["source"],
        )
        for record in records
    )


def measured_rows(table: ScoreTable) -> list[ModelRow]:
    """Return one row for each model that was scored."""
    rows = []
    for model in table.models:
        scores = [score for row in table.rows if (score := row.scores.get(model))]
        values: dict[Key, float | None] = {}
        for score in scores:
            values |= {(score.task, metric): value for metric, value in score.metrics.items()}
            values[score.task, score.metric] = value_of(score)
        seeds = {score.seeds for score in scores}
        note = "" if len(seeds) != 1 else f"{min(seeds)} seed{'' if seeds == {1} else 's'}"
        numbers = {key: value for key, value in values.items() if value is not None}
        random = MODEL_NAMES["random"] if model in ("pretrained", "random") else ""
        rows.append(ModelRow(MODEL_NAMES[model], False, numbers, random, note))
    return rows


def build_tables(
    measured: Sequence[ModelRow], tasks: Sequence[str], metrics: Mapping[str, str]
) -> list[Table]:
    """Return the paper's tables that have a requested task, and one of all other tasks.

    Args:
        measured: rows of the models scored here.
        tasks: folder names of the requested tasks.
        metrics: first metric of each task that has a score.
    """
    tables = [
        Table(group, columns, (*published_rows(), *measured))
        for group, columns in GROUPS.items()
        if any(column.task in tasks for column in columns)
    ]
    others = [task for task in tasks if task not in PAPER_TASKS]
    columns = tuple(_own_column(task, metrics.get(task, "")) for task in others)
    return tables + ([Table("other tasks", columns, tuple(measured))] if columns else [])


def _own_column(task: str, metric: str) -> Column:
    """Return the column of a task that the paper lacks; no metric: it has no score."""
    return Column(task, task, metric, metric not in NOT_AVERAGED, metric == ERROR_RATE)


def group_means(measured: ModelRow, tasks: Sequence[str]) -> dict[str, float | None]:
    """Return the mean of a row in each of the paper's groups, for `dvc exp show`."""
    return {
        group.split()[0]: Table(group, columns, ()).mean(measured)
        for group, columns in GROUPS.items()
        if any(column.task in tasks for column in columns)
    }
