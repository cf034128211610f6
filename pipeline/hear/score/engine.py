"""Score a task as hear-eval-kit does, with all settings, then all folds, trained at once.

The settings are tried on the first split; the one whose validation is best, the first of equals, is
trained on the other splits as well. The result has the shape of hear-eval-kit's.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pipeline.hear.score.data import TaskData, check_batches
from pipeline.hear.score.fitting import Fit, Trainer
from pipeline.hear.score.params import ScoreParams
from pipeline.hear.score.protocol import best, settings, splits
from pipeline.hear.score.random_streams import Draws
from pipeline.hear.tasks.task import METADATA

AT_ONCE = {"cpu": 1}  # more do not fit into the caches and are 5 % slower


@dataclass(frozen=True)
class Result:
    """Scores, and how they came about."""

    raw: dict[str, Any]  # as hear-eval-kit's
    fits: list[Fit]  # of the settings, then of the further splits
    logits: dict[str, Tensor]  # [N, C] of each test split


def evaluate(
    data: TaskData,
    params: ScoreParams,
    device: torch.device,
    draws: Draws,
    dtype: torch.dtype = torch.float32,
    at_once: int | None = None,
) -> Result:
    """Score a task.

    Args:
        draws: what is random; each call uses it up.
        at_once: classifiers that are trained together, 0: all that can be; None: as the device
            likes.

    Raises:
        ValueError: the task cannot be scored.
    """
    metadata = data.task.metadata
    confs = settings(params.grid, params.grid_points, metadata)
    parts = splits(metadata)
    check_batches(data, confs, parts)
    size = AT_ONCE.get(device.type, 0) if at_once is None else at_once
    trainer = Trainer(data, device, dtype, size)
    tried = [Fit(number, conf, parts[0]) for number, conf in enumerate(confs)]
    trainer.fit(tried, draws)
    _refuse_without_validation(tried, data)
    chosen = best(tried, [fit.value for fit in tried], trainer.scorer.maximize)
    others = [Fit(len(tried) + i, chosen.conf, part) for i, part in enumerate(parts[1:])]
    trainer.fit(others, draws)
    tested = {fit.split.test: (fit, *trainer.test(fit)) for fit in [chosen, *others]}
    raw: dict[str, Any] = {
        name: scores | {"validation_score": fit.value, "epoch": fit.epoch}
        for name, (fit, scores, _) in tested.items()
    }
    if others:
        table = pd.DataFrame.from_dict(raw, orient="index")
        mean, std = table.mean().add_suffix("_mean"), table.std().add_suffix("_std")
        raw["aggregated_scores"] = {**mean.to_dict(), **std.to_dict()}
    raw |= {
        "hparams": chosen.conf,
        "postprocessing": list(chosen.postprocessing),
        "score_mode": "max" if trainer.scorer.maximize else "min",
    }
    return Result(raw, [*tried, *others], {name: each[2] for name, each in tested.items()})


def _refuse_without_validation(fits: list[Fit], data: TaskData) -> None:
    for fit in fits:
        if not fit.history:
            epochs, every = fit.conf["max_epochs"], fit.conf["check_val_every_n_epoch"]
            raise ValueError(
                f"{data.task.name}: max_epochs = {epochs} is less than check_val_every_n_epoch = "
                f"{every}, so that nothing is validated. Correct 'evaluation_params."
                f"task_specific_param_grid' in {METADATA}."
            )
