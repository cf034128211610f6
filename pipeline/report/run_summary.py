"""A run in numbers: loss, correlation, run times, versions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pandas as pd
from jaxtyping import Float

from pipeline.report.data_summary import DATA_STAGES

LOSS_COLUMNS = ["loss", "invariance", "redundancy", "noise_floor"]
PACKAGES = ["torch", "torchaudio", "heareval", "pytorch-lightning", "numpy", "soxr", "h5py", "dvc"]


@dataclass(frozen=True)
class StageRuntime:
    """How long the instances of a stage took together, as far as they ran here."""

    stage: str
    instances: int
    measured: int  # instances whose run time is known
    seconds: float


def summarize_loss(history: pd.DataFrame, epochs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the loss and its parts `before` any update and `after`, the mean of the last epoch."""
    before = history[LOSS_COLUMNS].iloc[0]
    after = epochs.iloc[-1].reindex(LOSS_COLUMNS).fillna(before["noise_floor"])
    return {"before": before.to_dict(), "after": after.round(6).to_dict()}


def summarize_correlation(matrix: Float[np.ndarray, "D D"]) -> dict[str, float]:
    """Return the mean of the diagonal and the root mean square of all other entries."""
    others = matrix[~np.eye(len(matrix), dtype=bool)].astype(np.float64)
    return {"diagonal": float(np.diag(matrix).mean()), "others": float(np.sqrt((others**2).mean()))}


def summarize_runtimes(
    runtimes: dict[str, float], tasks: Sequence[str], probed: Sequence[str], models: Sequence[str]
) -> list[StageRuntime]:
    """Sum the run times of each stage over its instances.

    Args:
        runtimes: seconds by instance, of those that ran here.
    """
    pairs = [f"{task}-{model}" for task in tasks for model in models]
    instances = {
        **{stage: [stage] for stage in ("validate", *DATA_STAGES, "baselines")},
        "hear_tasks": [f"hear_tasks-{task}" for task in tasks],
        "fingerprint": ["fingerprint"],
        "leaks": [f"leaks-{task}" for task in tasks],
        "exclude": ["exclude"],
        "pretrain": ["pretrain"],
        "embed": [f"embed-{pair}" for pair in pairs],
        "score": [f"score-{pair}" for pair in pairs],
        **({"probe": [f"probe-{task}" for task in probed]} if probed else {}),
    }
    rows = []
    for stage, names in instances.items():
        seconds = [runtimes[name] for name in names if name in runtimes]
        rows.append(StageRuntime(stage, len(names), len(seconds), math.fsum(seconds)))
    return rows


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages on which results depend, without importing them."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return {name: installed(name) for name in PACKAGES}
