"""Statistics from merged sums, and what stats.json may hold."""

import json

import numpy as np
import pytest

from pipeline.features import stats
from pipeline.features.stats import Totals


def test_merged_totals_equal_numpy_over_the_concatenated_values():
    rng = np.random.default_rng(0)
    parts = [rng.normal(-5, 4, (n, 64)).astype(np.float32) for n in (1, 1001, 96)]
    merged = stats.merge(Totals.from_array(part) for part in parts)
    together = np.concatenate(parts).astype(np.float64)
    assert merged.count == together.size
    assert merged.mean == pytest.approx(together.mean(), rel=1e-12)
    assert merged.std == pytest.approx(together.std(), rel=1e-12)


def test_values_far_from_zero_keep_their_spread():
    values = np.full(10_000, 1000, np.float32)
    values[::2] += 0.25
    assert Totals.from_array(values).std == pytest.approx(0.125, rel=1e-6)


def test_equal_values_have_no_spread():
    assert Totals.from_array(np.full(1000, -15.942385, np.float32)).std == pytest.approx(
        0, abs=1e-6
    )


def test_no_values_have_no_mean():
    with pytest.raises(ValueError, match="no frames"):
        _ = Totals().mean


def test_what_is_read_is_mean_and_std(tmp_path):
    (tmp_path / "stats.json").write_text('{"mean": -7, "std": 3.5, "count": 9, "clips": 1}')
    assert stats.read(tmp_path) == (-7.0, 3.5)


def test_missing_statistics_say_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"stats\.json is missing.*`dvc repro -f logmel`"):
        stats.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        (b"\xff", "codec"),
        ("[1, 2]", r"expected an object, got \[1, 2\]"),
        ({"std": 1.0}, "mean is None, expected a finite number"),
        ({"mean": "-7", "std": 1.0}, "mean is '-7'"),
        ({"mean": True, "std": 1.0}, "mean is True"),
        ({"mean": float("nan"), "std": 1.0}, "mean is nan"),
        ({"mean": float("-inf"), "std": 1.0}, "mean is -inf"),
        ({"mean": 0.0}, "std is None"),
        ({"mean": 0.0, "std": [1.0]}, r"std is \[1.0\]"),
        ({"mean": 0.0, "std": 0.0}, "std is 0.0, expected a finite number above 0"),
        ({"mean": 0.0, "std": -1}, "std is -1"),
        ({"mean": 0.0, "std": float("nan")}, "std is nan"),
        ({"mean": 0.0, "std": float("inf")}, "std is inf"),
    ],
)
def test_broken_statistics_name_file_value_and_remedy(tmp_path, content, message):
    text = json.dumps(content) if isinstance(content, dict) else content
    path = tmp_path / "stats.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"stats\.json is broken.*{message}") as error:
        stats.read(tmp_path)
    assert str(path) in str(error.value)
    assert "Run `dvc repro -f logmel`" in str(error.value)
