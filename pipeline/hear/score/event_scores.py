"""sed_eval's event-based scores, counted with arrays.

An estimated event is right if a reference event of the same label and file begins, and where that
is asked for, ends at about the same time; each event counts once. sed_eval compares all pairs of a
file's events in Python, seconds for a file of 1,200 notes; the counts here are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy.sparse import csr_array
from scipy.sparse.csgraph import (
    maximum_bipartite_matching,
)
from sed_eval import metric

Event = Mapping[str, Any]  # label; start and end in ms
Events = Mapping[str, Sequence[Event]]  # of each file


@dataclass(frozen=True)
class EventScore:
    """F measure, precision and recall over the events of all files."""

    evaluate_onset: bool = True
    evaluate_offset: bool = True
    t_collar: float = 0.2  # seconds between two times that are about the same
    percentage_of_length: float = 0.5  # ... or, of ends, share of the reference event's duration

    def __call__(self, found: Events, wanted: Events) -> tuple[tuple[str, float], ...]:
        """Return the scores of the files in `found`."""
        right, given, there = 0, 0, 0
        for name, events in found.items():
            reference = wanted.get(name, [])
            given += len(events)
            there += len(reference)
            if events and reference:
                hits = csr_array(self._hits(reference, events))
                right += int((maximum_bipartite_matching(hits) >= 0).sum())
        precision, recall = metric.precision(right, given), metric.recall(right, there)
        f_measure = metric.f_measure(precision, recall)
        return ("f_measure", f_measure), ("precision", precision), ("recall", recall)

    def _hits(self, reference: Sequence[Event], found: Sequence[Event]) -> Bool[np.ndarray, "R E"]:
        hits = np.equal.outer(_labels(reference), _labels(found))
        if self.evaluate_onset:
            apart = np.abs(
                np.subtract.outer(_seconds(reference, "start"), _seconds(found, "start"))
            )
            hits &= apart <= self.t_collar
        if self.evaluate_offset:
            start, end = _seconds(reference, "start"), _seconds(reference, "end")
            collar = np.maximum(self.t_collar, self.percentage_of_length * (end - start))
            hits &= np.abs(np.subtract.outer(end, _seconds(found, "end"))) <= collar[:, None]
        return hits


def _labels(events: Sequence[Event]) -> np.ndarray:
    return np.array([str(event["label"]) for event in events])


def _seconds(events: Sequence[Event], key: str) -> Float64[np.ndarray, " E"]:
    return np.array([event[key] for event in events], np.float64) / 1000
