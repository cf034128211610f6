"""Scores of the pre-trained encoder beside those of the random one and others (paper tables 1-3).

The paper's "% over random" is the relative increase of a score over that of the same encoder with
its initial weights; that of a mean is taken from the two means. A mean is over all requested
tasks or it is not given.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.hear.params import TRAINED, Model
from pipeline.hear.score.params import ScoreParams
from pipeline.report.score_file import (
    HEAR_PROTOCOL,
    METRICS,
    MODEL_NAMES,
    NOT_AVERAGED,
    Score,
    percent_over,
    read_score,
    value_of,
    why_none,
)

FULL_MODES = ("full", "small")  # of a task's name; other modes ("5h", "50h") tell tasks apart


@dataclass(frozen=True)
class TaskScores:
    """One task with the models' scores; None where there is none."""

    task: str
    name: str
    scores: Mapping[Model, Score | None]  # of the requested models

    @property
    def pretrained(self) -> Score | None:
        """Score of the pre-trained encoder."""
        return self.scores.get("pretrained")

    @property
    def random(self) -> Score | None:
        """Score of the encoder with random weights."""
        return self.scores.get("random")

    @property
    def metric(self) -> str | None:
        """Name of the metric as heareval writes it."""
        return next((score.metric for score in self.scores.values() if score), None)

    @property
    def kind(self) -> str:
        """Kind of task, as far as the metric tells."""
        return METRICS.get(self.metric or "", ("", ""))[0]

    @property
    def metric_name(self) -> str:
        """Name of the metric for readers."""
        return METRICS.get(self.metric or "", ("", self.metric or ""))[1]

    @property
    def difference(self) -> float | None:
        """Score of the pre-trained encoder minus that of the random one."""
        value, baseline = value_of(self.pretrained), value_of(self.random)
        return None if value is None or baseline is None else value - baseline

    @property
    def percent(self) -> float | None:
        """Relative difference in percent."""
        return percent_over(value_of(self.pretrained), value_of(self.random))


@dataclass(frozen=True)
class ScoreTable:
    """All requested tasks, in the order of `hear.tasks`."""

    rows: tuple[TaskScores, ...]
    protocol: ScoreParams
    models: tuple[Model, ...]  # requested

    @property
    def others(self) -> list[Model]:
        """Requested models besides the pre-trained and the random encoder."""
        return [model for model in self.models if model not in TRAINED]

    @property
    def is_hear_protocol(self) -> bool:
        """Whether the scores are comparable with published ones."""
        return (self.protocol.grid, self.protocol.grid_points) == HEAR_PROTOCOL

    def why_no_mean(self, model: Model) -> str:
        """Return why no mean is given, or an empty string."""
        missing = [row for row in self.rows if value_of(row.scores.get(model)) is None]
        if missing:
            tasks = ", ".join(row.task + why_none(row.scores.get(model)) for row in missing)
            return f"scores are missing for {len(missing)} of {len(self.rows)} tasks ({tasks})"
        metrics = [row.metric for row in self.rows if row.metric in NOT_AVERAGED]
        return f"{metrics[0]} {NOT_AVERAGED[metrics[0] or '']}" if metrics else ""

    def mean(self, model: Model) -> float | None:
        """Return the mean score over all tasks; None if one is missing or cannot be averaged."""
        if self.why_no_mean(model):
            return None
        values = [value_of(row.scores.get(model)) or 0.0 for row in self.rows]
        return round(sum(values) / len(values), 6)

    @property
    def percent(self) -> float | None:
        """Relative difference of the means in percent."""
        return percent_over(self.mean("pretrained"), self.mean("random"))


def short_names(tasks: Sequence[str]) -> dict[str, str]:
    """Map folder names to column names: `<task>`, with the mode if it is not the whole task.

    `speech_commands-v0.0.2-5h` is `speech_commands_5h` and `-full` is `speech_commands`, whatever
    other tasks there are, so that the columns of two runs agree. Names that would still collide
    keep their mode, then their version.
    """
    parts = {task: task.split("-") for task in tasks}
    with_mode = {task: f"{part[0]}_{part[-1]}" for task, part in parts.items() if len(part) > 1}
    short = {
        task: part[0] if part[-1] in FULL_MODES else with_mode.get(task, task)
        for task, part in parts.items()
    }
    for longer in (with_mode, {task: task for task in tasks}):
        count = Counter(short.values())
        short = {t: longer.get(t, t) if count[name] > 1 else name for t, name in short.items()}
    return {task: name.replace(".", "_") for task, name in short.items()}


def read_table(
    folder: Path,
    tasks: Sequence[str],
    protocol: ScoreParams,
    models: Sequence[Model] = TRAINED,
    is_current: Callable[[Path], bool] = Path.exists,
) -> ScoreTable:
    """Return the models' scores of the requested tasks; other files are ignored.

    A score that is not `is_current` counts as missing.

    Raises:
        ValueError: a file is faulty, or two models have different metrics.
    """
    names = short_names(tasks)
    rows = []
    for task in dict.fromkeys(tasks):
        paths = {model: folder / model / f"{task}.json" for model in models}
        scores = {
            model: read_score(path, task, model, protocol) if is_current(path) else None
            for model, path in paths.items()
        }
        _refuse_different_metrics(task, scores)
        rows.append(TaskScores(task, names[task], scores))
    return ScoreTable(tuple(rows), protocol, tuple(models))


def _refuse_different_metrics(task: str, scores: Mapping[Model, Score | None]) -> None:
    models = {score.metric: model for model, score in scores.items() if score}
    if len(models) > 1:
        names = [f"{metric} of {MODEL_NAMES[model]}" for metric, model in models.items()]
        raise ValueError(
            f"{task}: {' cannot be compared with '.join(names)}. Delete these score files and "
            "run `dvc repro`."
        )


def metrics(
    table: ScoreTable, loss: float, groups: Mapping[str, float | None] | None = None
) -> dict[str, Any]:
    """Return the content of `reports/metrics.json`: the columns of `dvc exp show`.

    `groups` are the means of the paper's groups of tasks.
    """
    score = {"mean": table.mean("pretrained")} | {f"{k}_mean": v for k, v in (groups or {}).items()}
    score |= {row.name: value_of(row.pretrained) for row in table.rows}
    content = {
        "loss": loss,
        "score": score,
        "random": {"mean": table.mean("random")},
        "over_random_percent": table.percent,
    }
    content |= {model: {"mean": table.mean(model)} for model in table.others}
    return without_gaps(content)


def without_gaps(content: dict[str, Any]) -> dict[str, Any]:
    """Return nested values without those that are None, for which DVC should show no number."""
    inner = {k: without_gaps(v) if isinstance(v, dict) else v for k, v in content.items()}
    return {k: v for k, v in inner.items() if v is not None and v != {}}


def to_csv(table: ScoreTable) -> str:
    """Return the table as CSV for `dvc plots`; a missing score is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["task", "metric", "pretrained", "random", "difference", "over_random_percent"]
    writer.writerow([*columns, *table.others])
    for row in table.rows:
        pretrained, random = value_of(row.pretrained), value_of(row.random)
        difference = None if row.difference is None else round(row.difference, 6)
        others = [value_of(row.scores[model]) for model in table.others]
        values = [row.name, row.metric, pretrained, random, difference, row.percent]
        writer.writerow([*values, *others])
    return text.getvalue()
