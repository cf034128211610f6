"""Scores of a task's embeddings by hear-eval-kit itself, unmodified, as clean JSON.

heareval trains small classifiers on the training split, chooses one by the validation split and
scores it on the test split. It is run as its own program in a scratch folder, since it leaves its
checkpoints and logs where it runs. Its result contains times and memory addresses, and numbers
that JSON does not know (NaN, Infinity); what is kept of it is finite, and the same on
every run of one machine.
"""

import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.params.hear import ScoreParams

logger = logging.getLogger(__name__)

RESULT = "test.predicted-scores.json"
LOG = "heareval.log"
LOG_LINES = 15  # of a failed run that the message shows
ALL_FOLDS = "aggregated_scores"
NO_SPLITS = {ALL_FOLDS, "hparams", "postprocessing", "score_mode", "embedding_path"}
NO_METRICS = {"test_score", "test_loss"}  # test_score repeats the first metric
GPUS = {"cuda": ["--gpus", "[0]"], "cpu": ["--gpus", "null"], "auto": []}  # auto: heareval's choice
ENVIRONMENT = {
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # its checkpoints hold classes, not weights only
    "OMP_WAIT_POLICY": "PASSIVE",  # half the time where other work shares the cores
}
REASONS = {  # part of a metric's name: usual cause of a value that is not finite
    "d_prime": "a class is separated perfectly or absent",
    "aucroc": "a class is absent",
    "event": "no event is predicted, or there is none",
}
DIGITS = 6  # significant ones; heareval's scores are float32
OBJECT = re.compile(r"<(?:class '(?:\w+\.)*|function )(\w+).*>")  # as text, with its address


def run_heareval(embeddings: Path, scratch: Path, params: ScoreParams, device: str) -> Any:
    """Score a folder of embeddings and return hear-eval-kit's result as it is.

    Args:
        embeddings: folder of one task, left as it is.
        scratch: existing folder for what heareval writes, its log among it.
        device: `compute.device`.

    Raises:
        RuntimeError: heareval failed; the message has the end of its log.
    """
    task = scratch / embeddings.name
    task.mkdir()
    for path in embeddings.iterdir():
        (task / path.name).symlink_to(path.resolve())
    command = [sys.executable, "-m", "heareval.predictions.runner", task.name]
    command += ["--grid", params.grid, "--grid-points", str(params.grid_points), *GPUS[device]]
    log = scratch / LOG
    logger.info("%s: hear-eval-kit is running; its log is %s", task.name, log)
    with log.open("w") as output:
        done = subprocess.run(
            command,
            cwd=scratch,
            env=os.environ | ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    result = task / RESULT
    if done.returncode or not result.exists():
        raise RuntimeError(
            f"hear-eval-kit failed on {task.name} with exit status {done.returncode}; "
            f"the end of its log:\n{_end(log)}"
        )
    return json.loads(result.read_text())


def _end(log: Path) -> str:
    """Return the last lines of a log, each state of a progress bar as a line of its own."""
    text = log.read_text(errors="replace").replace("\r", "\n")
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])


def summarize(
    raw: Mapping[str, Any], task: str, model: str, metric: str, params: ScoreParams
) -> dict[str, Any]:
    """Return what is kept of hear-eval-kit's result.

    In a k-fold task, `score` and `metrics` are means over the folds and `std` is the sample
    standard deviation of the score. A number that is not finite becomes None, and so does a mean
    over less than all folds, with the cause under its dotted name in `notes`.
    """
    splits = {name: values for name, values in raw.items() if name not in NO_SPLITS}
    folds = raw.get(ALL_FOLDS)
    whole = {key: folds[f"{key}_mean"] for key in raw[next(iter(splits))]} if folds else raw["test"]
    notes = _partial_means(folds, splits) if folds else {}
    summary = {
        "task": task,
        "model": model,
        "metric": metric,
        "score": whole["test_score"],
        "std": folds["test_score_std"] if folds else None,
        "metrics": _metrics(whole),
        "splits": {name: _split(values) for name, values in splits.items()},
        "grid": params.grid,
        "grid_points": params.grid_points,
        "hparams": raw["hparams"],
        "postprocessing": dict(raw["postprocessing"]),
    }
    cleaned: dict[str, Any] = _clean(summary, "", notes)
    return cleaned | {"notes": notes}


def _metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    names = [key for key in values if key.startswith("test_") and key not in NO_METRICS]
    return {key.removeprefix("test_"): values[key] for key in names}


def _split(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the score of one split and how it came about."""
    kept = {key: values[f"test_{key}"] for key in ("score", "loss")}
    kept |= {key: values[key] for key in ("validation_score", "epoch")}
    return kept | _metrics(values)


def _partial_means(
    folds: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return a note for every statistic from which heareval left out folds without a number."""
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
    """Return nested values as plain JSON, adding to `notes` what could not be kept."""
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
