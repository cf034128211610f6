"""hear-eval-kit's protocol: the hyperparameters to try, and the folds.

The first `score.grid_points` combinations of the grid are tried, in an order that is the same for
all tasks. In a k-fold task each fold is the test split once: the next fold validates, the others
train. Hyperparameters are chosen with the first fold as the test split.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sklearn.model_selection import ParameterGrid

from pipeline.hear.tasks.task import METADATA, Metadata

Hyperparameters = dict[str, Any]  # one choice of each hyperparameter
T = TypeVar("T")

ORDER_SEED = 42  # of the order of the grid, as in hear-eval-kit
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
GRIDS: Mapping[str, Mapping[str, list[Any]]] = {  # differences from DEFAULT
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
class Fold:
    """Names of the splits that train, validate and test a classifier."""

    train: tuple[str, ...]
    valid: str
    test: str


def hyperparameter_grid(grid: str, grid_points: int, metadata: Metadata) -> list[Hyperparameters]:
    """Return the hyperparameters to try, in hear-eval-kit's order.

    Raises:
        ValueError: the task's own grid has an unknown hyperparameter.
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
    combinations = list(ParameterGrid(choices))
    random.Random(ORDER_SEED).shuffle(combinations)
    return combinations[:grid_points]


def postprocessings(metadata: Metadata) -> list[Hyperparameters]:
    """Return the event postprocessings to try, in hear-eval-kit's order."""
    own = metadata.evaluation_params.event_postprocessing_grid
    return list(ParameterGrid(dict(POSTPROCESSING if own is None else own)))


def folds(metadata: Metadata) -> list[Fold]:
    """Return all folds of a k-fold task, or the only one of a task with fixed splits."""
    if metadata.split_mode == "trainvaltest":
        return [Fold(("train",), "valid", "test")]
    names = sorted(metadata.splits)
    valid = [*names[1:], names[0]]
    return [
        Fold(tuple(fold for fold in names if fold not in pair), valid=pair[1], test=pair[0])
        for pair in zip(names, valid, strict=True)
    ]


def is_better(value: float, best: float, maximize: bool) -> bool:
    """Return whether a validation score is strictly better than the best one."""
    return value > best if maximize else value < best


def best(items: Sequence[T], values: Sequence[float], maximize: bool) -> T:
    """Return the item with the best value; if tied, the first."""
    chosen = (max if maximize else min)(range(len(items)), key=values.__getitem__)
    return items[chosen]
