"""Statistics from merged sums."""

import numpy as np
import pytest

from pipeline import stats
from pipeline.stats import Totals


def test_merged_totals_equal_numpy_over_the_concatenated_values():
    rng = np.random.default_rng(0)
    parts = [rng.normal(-5, 4, (n, 64)).astype(np.float32) for n in (1, 1001, 96)]
    merged = stats.merge(stats.of(part) for part in parts)
    together = np.concatenate(parts).astype(np.float64)
    assert merged.count == together.size
    assert merged.mean == pytest.approx(together.mean(), rel=1e-12)
    assert merged.std == pytest.approx(together.std(), rel=1e-12)


def test_values_far_from_zero_keep_their_spread():
    values = np.full(10_000, 1000, np.float32)
    values[::2] += 0.25
    assert stats.of(values).std == pytest.approx(0.125, rel=1e-6)


def test_equal_values_have_no_spread():
    assert stats.of(np.full(1000, -15.942385, np.float32)).std == pytest.approx(0, abs=1e-6)


def test_no_values_have_no_mean():
    with pytest.raises(ValueError, match="no frames"):
        _ = Totals().mean
