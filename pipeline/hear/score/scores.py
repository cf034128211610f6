"""Scores of a task's embeddings by HEAR's protocol, as clean JSON.

Small classifiers are trained on the training split; the best one on the validation split is scored
on the test split, either by hear-eval-kit itself, unmodified, or by `pipeline.hear.score.engine`,
whose results have the same shape. hear-eval-kit runs as its own program in a scratch folder, where
it leaves checkpoints and logs. Its result contains times, memory addresses and numbers that JSON
lacks (NaN, Infinity); our summary has none of them and is the same on every run of one machine.
"""

import json
import logging
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.hear.embed import files
from pipeline.hear.score import heareval_seed
from pipeline.hear.score.data import check_batches, read_data
from pipeline.hear.score.params import ScoreParams
from pipeline.hear.score.protocol import folds, hyperparameter_grid
from pipeline.hear.tasks.task import read_task

logger = logging.getLogger(__name__)

RESULT = "test.predicted-scores.json"
LOG = "heareval.log"
ROOT = Path(__file__).parents[3]
SEED = 42  # of the first repetition; hear-eval-kit's own
LOG_LINES = 15  # in the message of a failed run
ALL_FOLDS = "aggregated_scores"
NOT_SPLITS = {ALL_FOLDS, "hparams", "postprocessing", "score_mode", "embedding_path"}
NOT_METRICS = {"test_score", "test_loss"}  # test_score repeats the first metric
GPUS = {"cuda": ["--gpus", "[0]"], "cpu": ["--gpus", "null"], "auto": []}  # auto: heareval's choice
ENVIRONMENT = {
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # its checkpoints contain classes
    "OMP_WAIT_POLICY": "PASSIVE",  # halves the time if other work shares the cores
}
REASONS = {  # part of a metric's name: usual cause of a value that is not finite
    "d_prime": "a class is separated perfectly or absent",
    "aucroc": "a class is absent",
    "event": "no event is predicted, or there is none",
}
DIGITS = 6  # significant; heareval's scores are float32
OBJECT = re.compile(r"<(?:class '(?:\w+\.)*|function )(\w+).*>")  # printed, with its address


def score(embeddings: Path, scratch: Path, params: ScoreParams, device: str) -> list[Any]:
    """Score a folder of embeddings; return one result in hear-eval-kit's shape for each seed.

    Args:
        embeddings: folder of one task, not modified.
        scratch: existing folder.
        device: `compute.device`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the task or its embeddings are invalid.
        RuntimeError: hear-eval-kit failed.
    """
    data = read_data(embeddings)
    metadata = data.task.metadata
    check_batches(
        data, hyperparameter_grid(params.grid, params.grid_points, metadata), folds(metadata)
    )
    seeds = range(SEED, SEED + params.seeds)
    if params.engine == "heareval":
        del data  # it reads them itself
        return [run_heareval(embeddings, scratch, params, device, seed) for seed in seeds]
    from pipeline.core.device import choose_device
    from pipeline.hear.score.engine import evaluate
    from pipeline.hear.score.random_streams import RandomStreams  # slow to import: seconds

    chosen = choose_device(device)
    with np.errstate(invalid="ignore"):  # d prime is infinite if a class is separated perfectly
        return [evaluate(data, params, chosen, RandomStreams(seed, chosen)).raw for seed in seeds]


def run_heareval(
    embeddings: Path, scratch: Path, params: ScoreParams, device: str, seed: int = SEED
) -> Any:
    """Score a folder of embeddings; return hear-eval-kit's result unchanged.

    Args:
        embeddings: folder of one task, not modified.
        scratch: existing folder for what hear-eval-kit writes, including its log.
        device: `compute.device`.
        seed: of initial weights and dropout.

    Raises:
        RuntimeError: hear-eval-kit failed; the message has the end of its log.
    """
    scratch = scratch / str(seed)
    task = scratch / embeddings.name
    task.mkdir(parents=True)
    files.link_for_heareval(embeddings, read_task(embeddings).metadata.splits, task)
    log = scratch / LOG
    logger.info("%s: hear-eval-kit is running; its log is %s", task.name, log)
    code = _run(heareval_command(task.name, params, device, seed), scratch, log)
    result = task / RESULT
    if code or not result.exists():
        raise RuntimeError(
            f"hear-eval-kit failed on {task.name} with exit status {code}; the end of its log:\n"
            f"{_last_lines(log)}"
        )
    return json.loads(result.read_text())


def heareval_command(task: str, params: ScoreParams, device: str, seed: int) -> list[str]:
    """Return the command that scores a task in the current folder."""
    module = ["heareval.predictions.runner"]
    if seed != SEED:
        module = [heareval_seed.__name__, str(seed)]
    options = ["--grid", params.grid, "--grid-points", str(params.grid_points), *GPUS[device]]
    return [sys.executable, "-m", *module, task, *options]


def _run(command: list[str], folder: Path, log: Path) -> int:
    """Run a command in a folder, with its output to a log; return its exit status."""
    modules = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    with log.open("w") as output:
        return subprocess.run(
            command,
            cwd=folder,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": modules},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


def _last_lines(log: Path) -> str:
    """Return the last lines of a log, counting each state of a progress bar as a line."""
    text = log.read_text(errors="replace").replace("\r", "\n")
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])


def summarize_seeds(
    raws: Sequence[Mapping[str, Any]], task: str, model: str, metric: str, params: ScoreParams
) -> dict[str, Any]:
    """Summarize the results of all seeds.

    `score`, `std` and `metrics` are means over the seeds, or None if a seed lacks the value; see
    `notes`. `per_seed` has the values of each seed. Everything else is of the first seed.
    """
    summaries = [summarize(raw, task, model, metric, params) for raw in raws]
    scores = [summary["score"] for summary in summaries]
    names = ("score", "std", "metrics", "hparams", "postprocessing", "notes")
    several = len(scores) > 1 and None not in scores
    return summaries[0] | {
        "score": _mean(scores),
        "std": _mean([summary["std"] for summary in summaries]),
        "notes": {
            name: note for summary in reversed(summaries) for name, note in summary["notes"].items()
        },
        "metrics": {
            name: _mean([summary["metrics"][name] for summary in summaries])
            for name in summaries[0]["metrics"]
        },
        "engine": params.engine,
        "seeds": params.seeds,
        "seeds_std": float(f"{statistics.stdev(scores):.{DIGITS}g}") if several else None,
        "per_seed": [
            {"seed": SEED + i} | {name: summary[name] for name in names}
            for i, summary in enumerate(summaries)
        ],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return float(f"{statistics.fmean(known):.{DIGITS}g}")


def summarize(
    raw: Mapping[str, Any], task: str, model: str, metric: str, params: ScoreParams
) -> dict[str, Any]:
    """Summarize one result.

    In a k-fold task, `score` and `metrics` are means over the folds and `std` is the sample
    standard deviation of the score. Numbers that are not finite and means over only some of the
    folds become None, with the cause under their dotted names in `notes`.
    """
    splits = {name: values for name, values in raw.items() if name not in NOT_SPLITS}
    folds = raw.get(ALL_FOLDS)
    overall = (
        {key: folds[f"{key}_mean"] for key in raw[next(iter(splits))]} if folds else raw["test"]
    )
    notes = _partial_means(folds, splits) if folds else {}
    summary = {
        "task": task,
        "model": model,
        "metric": metric,
        "score": overall["test_score"],
        "std": folds["test_score_std"] if folds else None,
        "metrics": _metrics(overall),
        "splits": {name: _split(values) for name, values in splits.items()},
        "grid": params.grid,
        "grid_points": params.grid_points,
        "hparams": raw["hparams"],
        "postprocessing": dict(raw["postprocessing"]),
    }
    cleaned: dict[str, Any] = _clean(summary, "", notes)
    if cleaned["score"] is None:
        notes["score"] = notes.get(f"metrics.{metric}", notes["score"])  # which has the cause
    return cleaned | {"notes": notes}


def _metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    names = [key for key in values if key.startswith("test_") and key not in NOT_METRICS]
    return {key.removeprefix("test_"): values[key] for key in names}


def _split(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of one split and the epoch they are from."""
    result = {key: values[f"test_{key}"] for key in ("score", "loss")}
    result |= {key: values[key] for key in ("validation_score", "epoch")}
    return result | _metrics(values)


def _partial_means(
    folds: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return a note for every statistic that heareval computed over only some of the folds."""
    notes = {}
    for key in next(iter(splits.values())):
        left_out = [name for name, values in splits.items() if math.isnan(values[key])]
        if left_out and len(left_out) < len(splits):
            name = "score" if key == "test_score" else f"metrics.{key.removeprefix('test_')}"
            without = f"without {', '.join(left_out)}"
            notes[name] = f"heareval gives {folds[f'{key}_mean']:.{DIGITS}g}, a mean {without}"
            if name == "score":
                notes["std"] = f"heareval gives {folds[f'{key}_std']:.{DIGITS}g}, {without}"
    return notes


def _clean(value: Any, name: str, notes: dict[str, str]) -> Any:
    """Return nested values as plain JSON; explain in `notes` what became None."""
    if isinstance(value, Mapping):
        inner = {key: f"{name}.{key}".lstrip(".") for key in value}
        return {key: _clean(value[key], inner[key], notes) for key in value}
    if name in notes:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        causes = [text for part, text in REASONS.items() if part in name]
        notes[name] = ": ".join([str(value), *causes[:1]])
        return None
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, str):
        return OBJECT.sub(r"\1", value)
    return value
