"""Sound events from the probabilities of frames, as hear-eval-kit makes them.

Per file and label: a median filter over time, then a threshold of 0.5. A run of frames above it is
one event, from the time of the first frame to that of the last; events shorter than `min_duration`
are dropped. A median is above the threshold if more than half of the values are (at least half, if
their number is even), so the filter is a moving sum of the frames above the threshold.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Bool, Float64, Int

Event = dict[str, str | float]  # label; start and end in ms
Postprocessing = tuple[tuple[str, int | float], ...]  # its settings, as name and value
THRESHOLD = 0.5


@dataclass(frozen=True)
class FileFrames:
    """The rows of a file's frames in its split, in order of time."""

    name: str
    rows: Int[np.ndarray, " T"]
    times: Float64[np.ndarray, " T"]  # ms

    @property
    def hop(self) -> float:
        """Mean time between two frames in ms."""
        return float(np.mean(np.diff(self.times)))


def group_by_file(timestamps: Iterable[Sequence[str | float]], path: Path) -> list[FileFrames]:
    """Return the files of a split, in the order of their first frames.

    Args:
        timestamps: file and time in ms of each row; of rows with equal times, the last counts.
        path: of the file that holds them.

    Raises:
        ValueError: a file has a single timestamp, so the hop is unknown.
    """
    files: dict[str, dict[float, int]] = {}
    for row, (name, time) in enumerate(timestamps):
        files.setdefault(PurePath(str(name)).name, {})[float(time)] = row
    groups = []
    for name, by_time in files.items():
        if len(by_time) < 2:
            raise ValueError(
                f"{path}, file {name!r}: one timestamp, at least two are needed to find events. "
                "Set hear.hop_ms to less than half of the file's duration."
            )
        times = np.array(sorted(by_time))
        groups.append(FileFrames(name, np.array([by_time[time] for time in times]), times))
    return groups


def median_above(active: Bool[np.ndarray, "T C"], width: int) -> Bool[np.ndarray, "T C"]:
    """Return where the median over time is above the threshold.

    Args:
        active: where the values are above it.
        width: of the filter in frames; the edges are mirrored.
    """
    padded = np.pad(active, [(width // 2, (width - 1) // 2), (0, 0)], mode="symmetric")
    total = np.zeros((len(padded) + 1, active.shape[1]), np.int32)
    np.cumsum(padded, axis=0, out=total[1:])
    return total[width:] - total[:-width] >= width - width // 2


def find_events(
    active: Bool[np.ndarray, "N C"],
    files: Sequence[FileFrames],
    vocabulary: Sequence[str],
    median_filter_ms: int | float = 150,
    min_duration: int | float = 60,
) -> dict[str, list[Event]]:
    """Return the events of each file, in order of their starts.

    Args:
        active: where the probabilities of a split's rows are above the threshold.
        files: the files of this split.
        vocabulary: labels by index.
        median_filter_ms: width of the filter; 0: none. This default and that of `min_duration` are
            hear-eval-kit's, for a task whose grid lacks them.
        min_duration: ms.
    """
    events = {}
    for file in files:
        frames = active[file.rows]
        width = round(median_filter_ms / file.hop) if median_filter_ms else 0
        if width > 1:
            frames = median_above(frames, width)
        events[file.name] = _events_of_runs(frames, file.times, vocabulary, min_duration)
    return events


def _events_of_runs(
    active: Bool[np.ndarray, "T C"],
    times: Float64[np.ndarray, " T"],
    vocabulary: Sequence[str],
    min_duration: int | float,
) -> list[Event]:
    edges = np.diff(active.T.astype(np.int8), axis=1, prepend=0, append=0)
    label, first = np.nonzero(edges == 1)
    last = np.nonzero(edges == -1)[1] - 1
    start, end = times[first], times[last]
    long_enough = np.flatnonzero(end - start >= min_duration)
    order = long_enough[np.argsort(start[long_enough], kind="stable")]
    return [
        {"label": vocabulary[label[i]], "start": float(start[i]), "end": float(end[i])}
        for i in order
    ]


def best_postprocessing(scores: Mapping[Postprocessing, float]) -> Postprocessing:
    """Return the postprocessing with the highest score; if tied, the one with larger settings.

    As in hear-eval-kit, the highest wins even if lower scores are better, and nan counts as 0.
    """
    return max(scores, key=lambda key: (0.0 if np.isnan(scores[key]) else scores[key], key))
