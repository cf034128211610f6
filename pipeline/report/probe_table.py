"""Curves of the probe over the epochs: which of the saved encoders is the best.

A curve is reports/probe/<task>.csv: epoch, knn, linear; see `pipeline.hear.probe`. The encoders:

    epoch 0         data/random
    some between    snapshots in data/pretrained, see `pipeline.encoders.snapshots`
    the last        data/pretrained
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.encoders.snapshots import snapshot_folder

COLUMNS = ["epoch", "knn", "linear"]
RANDOM, PRETRAINED = Path("data/random"), Path("data/pretrained")
REMEDY = "Delete the file and run `dvc repro`."


@dataclass(frozen=True)
class ProbeTable:
    """Curves of the probe, and what was requested."""

    curves: dict[str, pd.DataFrame]  # by task
    tasks: Sequence[str]  # requested
    epochs: int  # of the run
    snapshot_epochs: int  # between two snapshots; 0: none

    @property
    def missing_tasks(self) -> list[str]:
        """Tasks without a curve."""
        return [task for task in self.tasks if task not in self.curves]

    @property
    def missing_epochs(self) -> list[int]:
        """Epochs whose encoder should have been saved but is not in every curve."""
        if not self.curves:
            return []
        every = self.snapshot_epochs
        expected = {0, self.epochs, *(range(every, self.epochs, every) if every else ())}
        return sorted(expected - set(self.mean.index))

    @property
    def means(self) -> pd.DataFrame:
        """Mean scores of the tasks by epoch, of the epochs that all tasks have."""
        curves = [curve.set_index("epoch") for curve in self.curves.values()]
        if not curves:
            return pd.DataFrame(columns=COLUMNS).set_index("epoch")
        common = sorted(set.intersection(*(set(curve.index) for curve in curves)))
        mean: pd.DataFrame = sum(curve.loc[common] for curve in curves) / len(curves)
        return mean.round(6)

    @property
    def mean(self) -> "pd.Series[float]":
        """Mean score of the linear classifier by epoch; it decides which epoch is best."""
        return self.means["linear"]

    @property
    def best(self) -> int:
        """Epoch with the highest mean; the first if several have it."""
        return int(self.mean.idxmax())

    @property
    def first_as_good(self) -> int:
        """First epoch whose mean is not below that of the last one."""
        mean = self.mean
        return int(mean.index[mean >= mean.iloc[-1]][0])

    def folder(self, epoch: int) -> str:
        """Return where the encoder of an epoch is."""
        ends = {0: RANDOM, self.epochs: PRETRAINED}
        return ends.get(epoch, snapshot_folder(PRETRAINED, epoch)).as_posix()


def read_probe(
    folder: Path,
    tasks: Sequence[str],
    epochs: int,
    snapshot_epochs: int,
    is_current: Callable[[Path], bool] = Path.exists,
) -> ProbeTable:
    """Return the curves of the requested tasks; other files in the folder are ignored.

    A curve that is not `is_current` counts as missing.

    Raises:
        ValueError: a file is not a curve, or those of two tasks have no epoch in common.
    """
    paths = {task: folder / f"{task}.csv" for task in tasks}
    curves = {task: _read_curve(path) for task, path in paths.items() if is_current(path)}
    table = ProbeTable(curves, tasks, epochs, snapshot_epochs)
    if curves and table.means.empty:
        raise ValueError(f"{folder}: the curves have no epoch in common. {REMEDY}")
    return table


def _read_curve(path: Path) -> pd.DataFrame:
    try:
        curve = pd.read_csv(path, usecols=COLUMNS)
        values = curve.to_numpy(dtype=float)
    except ValueError as error:  # also pandas' own parser errors
        raise ValueError(f"{path} is not a curve of the probe: {error}. {REMEDY}") from None
    if not len(curve) or not (np.isfinite(values).all() and (values[:, 1:] <= 1).all()):
        raise ValueError(f"{path} must have scores from 0 to 1 for each epoch. {REMEDY}")
    return curve
