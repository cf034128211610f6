"""Mean and standard deviation over many arrays, from sums that can be merged.

The order of the additions is fixed (clip by clip, shard by shard), so the result is bit-identical
for any number of processes.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pipeline.features.params import REMEDY


@dataclass(frozen=True)
class Totals:
    """Number, sum and sum of squares of values, in float64."""

    count: int = 0
    sum: float = 0.0
    sumsq: float = 0.0

    @staticmethod
    def from_array(values: Float[np.ndarray, "..."]) -> "Totals":
        """Return the totals of the values of one array."""
        exact = values.astype(np.float64)
        return Totals(values.size, float(exact.sum()), float(np.square(exact).sum()))

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(self.count + other.count, self.sum + other.sum, self.sumsq + other.sumsq)

    @property
    def mean(self) -> float:
        """Mean of all values.

        Raises:
            ValueError: there are none.
        """
        if self.count == 0:
            raise ValueError("Cannot take the mean of zero values: there are no frames.")
        return self.sum / self.count

    @property
    def std(self) -> float:
        """Population standard deviation of all values."""
        return math.sqrt(max(self.sumsq / self.count - self.mean**2, 0.0))


def merge(parts: Iterable[Totals]) -> Totals:
    """Return the sum of totals, added in their order."""
    return sum(parts, Totals())


def read(folder: Path) -> tuple[float, float]:
    """Return the mean and the standard deviation in the `stats.json` of a folder of features.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a JSON object, a value is not a finite number, or the standard
            deviation is not positive.
    """
    path = folder / "stats.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing, so the features are absent or incomplete. {REMEDY}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}). {REMEDY}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is broken: expected an object, got {content!r}. {REMEDY}")
    try:
        return _number(content, "mean", -math.inf), _number(content, "std", 0.0)
    except ValueError as error:
        raise ValueError(f"{path} is broken: {error}. {REMEDY}") from error


def _number(content: dict[str, Any], name: str, bound: float) -> float:
    value: Any = content.get(name)
    if type(value) not in (int, float) or not bound < value < math.inf:
        above = " above 0" if bound == 0 else ""
        raise ValueError(f"{name} is {value!r}, expected a finite number{above}")
    return float(value)
