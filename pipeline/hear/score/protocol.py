"""hear-eval-kit's choices: the settings that are tried, and the splits.

The settings are all combinations of a grid's choices, in an order that is the same for all tasks;
the first `score.grid_points` of them are tried. In a k-fold task each fold is tested once, the next
one validates and the others train; the settings are chosen on the first of these splits alone.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sklearn.model_selection import ParameterGrid

from pipeline.hear.tasks.task import METADATA, Metadata

Conf = dict[str, Any]  # one choice of each setting
T = TypeVar("T")

ORDER_SEED = 42  # of the settings' order, as in hear-eval-kit
DEFAULT: Mapping[str, list[Any]] = {
    "hidden_layers": [1, 2],
    "hidden_dim": [1024],
    "dropout": [0.1],
    "lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4],
    "patience": [20],  # validations without an improvement
    "max_epochs": [500],
    "check_val_every_n_epoch": [3],
    "batch_size": [1024],
    "hidden_norm": ["BatchNorm1d"],
    "norm_after_activation": [False],
    "embedding_norm": ["Identity"],
    "initialization": ["xavier_uniform_", "xavier_normal_"],
    "optim": ["Adam"],
}
GRIDS: Mapping[str, Mapping[str, list[Any]]] = {  # in what they differ from DEFAULT
    "default": {},
    "fast": {"max_epochs": [10, 50], "check_val_every_n_epoch": [3, 10]},
    "faster": {
        "hidden_layers": [0, 1],
        "hidden_dim": [64, 128],
        "patience": [1, 3],
        "max_epochs": [10],
        "check_val_every_n_epoch": [1],
    },
}
BY_TASK: Mapping[str, Mapping[str, list[Any]]] = {
    "dcase2016_task2": {"check_val_every_n_epoch": [10]}
}
POSTPROCESSING: Mapping[str, list[Any]] = {  # of events; ms
    "median_filter_ms": [250],
    "min_duration": [125, 250],
}
NUMBERS = [key for key, choices in DEFAULT.items() if type(choices[0]) in (int, float)]


@dataclass(frozen=True)
class Split:
    """Names of the parts of a task that train, validate and test a classifier."""

    train: tuple[str, ...]
    valid: str
    test: str


def settings(grid: str, grid_points: int, metadata: Metadata) -> list[Conf]:
    """Return the settings to try, in hear-eval-kit's order.

    Raises:
        ValueError: the task's own grid has an unknown setting.
    """
    own = metadata.evaluation_params.task_specific_param_grid
    unknown = sorted(set(own) - set(NUMBERS))
    if unknown:
        raise ValueError(
            f"{METADATA} of {metadata.task_name}, field "
            f"'evaluation_params.task_specific_param_grid': unknown setting {unknown[0]!r}, "
            f"expected one of {', '.join(NUMBERS)}. Correct it."
        )
    choices = {**DEFAULT, **GRIDS[grid], **BY_TASK.get(metadata.task_name, {}), **own}
    found = list(ParameterGrid(choices))
    random.Random(ORDER_SEED).shuffle(found)
    return found[:grid_points]


def postprocessings(metadata: Metadata) -> list[Conf]:
    """Return the ways to make events of probabilities, in hear-eval-kit's order."""
    own = metadata.evaluation_params.event_postprocessing_grid
    return list(ParameterGrid(dict(POSTPROCESSING if own is None else own)))


def splits(metadata: Metadata) -> list[Split]:
    """Return one split, or, of a k-fold task, one for each fold."""
    if metadata.split_mode == "trainvaltest":
        return [Split(("train",), "valid", "test")]
    folds = sorted(metadata.splits)
    valid = [*folds[1:], folds[0]]
    return [
        Split(tuple(fold for fold in folds if fold not in pair), valid=pair[1], test=pair[0])
        for pair in zip(folds, valid, strict=True)
    ]


def better(value: float, best: float, maximize: bool) -> bool:
    """Return whether a validation improves on the best one; equality does not."""
    return value > best if maximize else value < best


def best(found: Sequence[T], values: Sequence[float], maximize: bool) -> T:
    """Return the item with the best value, the first of equals."""
    chosen = (max if maximize else min)(range(len(found)), key=values.__getitem__)
    return found[chosen]
