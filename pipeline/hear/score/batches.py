"""The batches of an epoch: rows in stored order, the same in every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows to train on: shared by all classifiers, or of each one, padded at the end."""

    x: Float[Tensor, "B D"] | Float[Tensor, "G B D"]
    target: Tensor  # [B ...] or [G B ...]
    counts: tuple[int, ...]  # rows of each classifier; with 0 rows it takes no step
    weight: Float[Tensor, "G 1 B"] | None = None  # 1 / count, 0 for padding; None: no padding


@dataclass(frozen=True)
class BatchRows:
    """The rows of a batch."""

    index: slice | Int[Tensor, " B"] | Int[Tensor, "G B"]
    counts: tuple[int, ...]
    weight: Float[Tensor, "G 1 B"] | None

    def gather(self, x: Float[Tensor, "N D"], target: Tensor, dtype: torch.dtype) -> Batch:
        """Return the batch, given all embeddings and their targets."""
        weight = None if self.weight is None else self.weight.to(dtype)
        return Batch(x[self.index].to(dtype), target[self.index], self.counts, weight)


def epoch_batches(
    rows: Sequence[Int[np.ndarray, " _"]], size: int, device: torch.device
) -> list[BatchRows]:
    """Return an epoch's batches.

    Args:
        rows: each classifier's training rows, in order.
        size: of a batch.
    """
    if all(np.array_equal(rows[0], other) for other in rows[1:]):
        starts = range(0, len(rows[0]), size)
        return [_shared(rows[0][start : start + size], len(rows), device) for start in starts]
    starts = range(0, max(map(len, rows)), size)
    return [_per_classifier([r[start : start + size] for r in rows], device) for start in starts]


def _shared(rows: Int[np.ndarray, " B"], classifiers: int, device: torch.device) -> BatchRows:
    first, end = int(rows[0]), int(rows[0]) + len(rows)
    counts = (len(rows),) * classifiers
    if np.array_equal(rows, np.arange(first, end)):  # consecutive: a view, not a copy
        return BatchRows(slice(first, end), counts, None)
    return BatchRows(torch.from_numpy(rows).to(device), counts, None)


def _per_classifier(rows: Sequence[Int[np.ndarray, " _"]], device: torch.device) -> BatchRows:
    counts = tuple(map(len, rows))
    index = np.zeros((len(rows), max(counts)), np.int64)
    weight = np.zeros((len(rows), 1, max(counts)))
    for i, classifier_rows in enumerate(rows):
        index[i, : counts[i]] = classifier_rows
        weight[i, 0, : counts[i]] = 1 / max(counts[i], 1)
    is_padded = len(set(counts)) > 1
    weights = torch.from_numpy(weight).to(device) if is_padded else None
    return BatchRows(torch.from_numpy(index).to(device), counts, weights)
