"""Mean and standard deviation over many arrays, from sums that are exact to merge.

The order of the additions is fixed (clip by clip, shard by shard), so the result is the same to
the bit however many processes share the work.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Totals:
    """Number, sum and sum of squares of values, in float64."""

    count: int = 0
    sum: float = 0.0
    sumsq: float = 0.0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(self.count + other.count, self.sum + other.sum, self.sumsq + other.sumsq)

    @property
    def mean(self) -> float:
        """Mean of all values.

        Raises:
            ValueError: there are none.
        """
        if self.count == 0:
            raise ValueError("The mean of no values does not exist; there are no frames.")
        return self.sum / self.count

    @property
    def std(self) -> float:
        """Standard deviation of all values (of the population: divided by their number)."""
        return math.sqrt(max(self.sumsq / self.count - self.mean**2, 0.0))


def of(values: Float[np.ndarray, "..."]) -> Totals:
    """Return the totals of one array."""
    exact = values.astype(np.float64)
    return Totals(values.size, float(exact.sum()), float(np.square(exact).sum()))


def merge(parts: Iterable[Totals]) -> Totals:
    """Add totals up in the order given."""
    return sum(parts, Totals())
