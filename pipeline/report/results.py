"""All results of a run, which its page and tables show."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from pipeline.leaks import table as leak_table
from pipeline.leaks.table import TaskLeaks
from pipeline.report.inputs import Pretraining
from pipeline.report.paper.comparison import Comparison, compare
from pipeline.report.probe_table import ProbeTable
from pipeline.report.score_table import ScoreTable


@dataclass(frozen=True)
class Results:
    """The results of a run, as read from its outputs."""

    pretraining: Pretraining
    scores: ScoreTable
    probe: ProbeTable
    ledger: pd.DataFrame  # with the clips marked that pre-training left out
    leaks: Sequence[TaskLeaks]  # one for each task that was compared with the clips
    label_names: dict[str, str]  # by id; a label without a name is shown as its id
    params: dict[str, Any]  # of the run, by dotted key
    runtimes: dict[str, float]  # seconds by instance of a stage, of those that ran here

    @cached_property
    def paper(self) -> Comparison:
        """Scores beside those of the paper."""
        left_out = int((self.ledger["status"] == leak_table.STATUS).sum())
        return compare(self.scores, self.params, left_out)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested parameters under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
