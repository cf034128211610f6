"""Score a task as hear-eval-kit does: all hyperparameters at once, then all folds at once.

The hyperparameters are tried on the first fold. Those with the best validation score (the first, if
tied) are then used on the other folds. The result has the shape of hear-eval-kit's.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pipeline.hear.score.data import TaskData, check_batches
from pipeline.hear.score.fitting import EnsembleTrainer, Trial
from pipeline.hear.score.params import ScoreParams
from pipeline.hear.score.protocol import best, folds, hyperparameter_grid
from pipeline.hear.score.random_streams import RandomStreams
from pipeline.hear.tasks.task import METADATA

AT_ONCE = {"cpu": 1}  # classifiers; more exceed the caches and are 5 % slower


@dataclass(frozen=True)
class Result:
    """Scores, and the classifiers behind them."""

    raw: dict[str, Any]  # as hear-eval-kit's
    trials: list[Trial]  # one for each choice of hyperparameters, then one for each further fold
    logits: dict[str, Tensor]  # [N, C] of each test split


def evaluate(
    data: TaskData,
    params: ScoreParams,
    device: torch.device,
    streams: RandomStreams,
    dtype: torch.dtype = torch.float32,
    at_once: int | None = None,
) -> Result:
    """Score a task.

    Args:
        streams: random numbers, which the call consumes.
        at_once: classifiers to train together; 0: all of one shape, None: what suits the device.

    Raises:
        ValueError: the task cannot be scored.
    """
    grid = hyperparameter_grid(params.grid, params.grid_points, data.task.metadata)
    first, *further = folds(data.task.metadata)
    check_batches(data, grid, [first, *further])
    size = AT_ONCE.get(device.type, 0) if at_once is None else at_once
    trainer = EnsembleTrainer(data, device, dtype, size)
    searched = [Trial(number, hparams, first) for number, hparams in enumerate(grid)]
    trainer.fit(searched, streams)
    _refuse_without_validation(searched, data)
    chosen = best(searched, [trial.value for trial in searched], trainer.scorer.maximize)
    others = [Trial(len(searched) + i, chosen.hparams, fold) for i, fold in enumerate(further)]
    trainer.fit(others, streams)
    tests = {trial.fold.test: (trial, *trainer.test(trial)) for trial in [chosen, *others]}
    raw = {
        name: scores | {"validation_score": trial.value, "epoch": trial.epoch}
        for name, (trial, scores, _) in tests.items()
    }
    logits = {name: logits for name, (_, _, logits) in tests.items()}
    choice = {
        "hparams": chosen.hparams,
        "postprocessing": list(chosen.postprocessing),
        "score_mode": "max" if trainer.scorer.maximize else "min",
    }
    return Result(raw | _aggregated(raw) | choice, [*searched, *others], logits)


def _aggregated(folds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean and the sample standard deviation of every score, if there are folds."""
    if len(folds) == 1:
        return {}
    table = pd.DataFrame.from_dict(folds, orient="index")
    mean, std = table.mean().add_suffix("_mean"), table.std().add_suffix("_std")
    return {"aggregated_scores": {**mean.to_dict(), **std.to_dict()}}


def _refuse_without_validation(trials: list[Trial], data: TaskData) -> None:
    for trial in trials:
        if not trial.history:
            epochs, every = trial.hparams["max_epochs"], trial.hparams["check_val_every_n_epoch"]
            raise ValueError(
                f"{data.task.name}: max_epochs = {epochs} is less than check_val_every_n_epoch = "
                f"{every}, so nothing is validated. Correct 'evaluation_params."
                f"task_specific_param_grid' in {METADATA}."
            )
