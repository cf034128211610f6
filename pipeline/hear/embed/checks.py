"""Checks of a HEAR module's output against the HEAR API."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

REMEDY = "Correct the HEAR module (https://hearbenchmark.com/hear-api.html)."
SECONDS = 100  # if a clip is this many times longer than its last timestamp, these are seconds
Output = tuple[Float32[np.ndarray, "B N D"], Float[np.ndarray, "B N"] | None]


def checked_output(
    embeddings: Any,
    timestamps: Any,
    embedding_type: str,
    files: Sequence[Path],
    duration_ms: float,
) -> Output:
    """Return the embeddings of some files of one length as arrays, scenes as one row each.

    Raises:
        ValueError: names the file, the field and the fault: type, shape, dtype, a value that is not
            finite, or timestamps that do not increase, are negative or in seconds.
    """
    _refuse_other_types(embeddings, "embeddings", torch.float32, files)
    if embedding_type == "scene":
        _refuse_other_shape(embeddings, "embeddings", [len(files), "size"], files)
        values = embeddings[:, None].cpu().numpy()
        _refuse_nonfinite(values, "embeddings", files)
        return values, None
    _refuse_other_shape(embeddings, "embeddings", [len(files), "timestamps", "size"], files)
    _refuse_other_types(timestamps, "timestamps", None, files)
    _refuse_other_shape(timestamps, "timestamps", list(embeddings.shape[:2]), files)
    values, times = embeddings.cpu().numpy(), timestamps.double().cpu().numpy()
    _refuse_nonfinite(values, "embeddings", files)
    _refuse_nonfinite(times, "timestamps", files)
    _refuse_disorder(times, files)
    _refuse_other_units(times, duration_ms, files)
    return values, times


def check_size(embedding: Float32[np.ndarray, "N D"], size: int | None, where: str) -> None:
    """Raise a ValueError if an embedding differs in size from earlier ones, if any."""
    if size not in (None, embedding.shape[-1]):
        raise ValueError(
            f"{where} has {embedding.shape[-1]} values, those before it {size}: all of a task "
            f"must have one size. {REMEDY}"
        )


def _refuse_disorder(times: Float[np.ndarray, "B N"], files: Sequence[Path]) -> None:
    for path, row in zip(files, times, strict=True):
        falls = np.diff(row) <= 0
        if falls.any():
            i = int(falls.argmax())
            raise ValueError(
                f"{path}: field 'timestamps' does not increase: {row[i]:g} ms is followed by "
                f"{row[i + 1]:g} ms. {REMEDY}"
            )


def _refuse_other_units(
    times: Float[np.ndarray, "B N"], duration_ms: float, files: Sequence[Path]
) -> None:
    for path, row in zip(files, times, strict=True):
        if row[0] < 0:
            raise ValueError(
                f"{path}: field 'timestamps' begins at {row[0]:g} ms, expected 0 or more. {REMEDY}"
            )
        if len(row) > 1 and row[-1] * SECONDS < duration_ms:
            raise ValueError(
                f"{path}: field 'timestamps' ends at {row[-1]:g} ms in a clip of {duration_ms:g} "
                f"ms, expected ms: are these seconds? {REMEDY}"
            )


def _refuse_other_types(
    value: Any, field: str, dtype: torch.dtype | None, files: Sequence[Path]
) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{_describe(files)}: field {field!r} is a {type(value).__name__}, expected a torch "
            f"tensor. {REMEDY}"
        )
    if (dtype and value.dtype != dtype) or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(
            f"{_describe(files)}: field {field!r} has dtype {value.dtype}, expected "
            f"{dtype or 'real numbers'}. {REMEDY}"
        )


def _refuse_other_shape(
    value: Tensor, field: str, expected: list[int | str], files: Sequence[Path]
) -> None:
    shape = list(value.shape)
    fits = len(shape) == len(expected) and 0 not in shape
    if not fits or any(isinstance(b, int) and a != b for a, b in zip(shape, expected, strict=True)):
        raise ValueError(
            f"{_describe(files)}: field {field!r} has the shape {shape}, expected "
            f"[{', '.join(map(str, expected))}]. {REMEDY}"
        )


def _refuse_nonfinite(values: np.ndarray, field: str, files: Sequence[Path]) -> None:
    faulty = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if faulty.any():
        raise ValueError(
            f"{files[int(faulty.argmax())]}: field {field!r} has values that are not finite. "
            "Has our encoder diverged? See the curves in data/pretrained/history.csv. "
            f"{REMEDY}"
        )


def _describe(files: Sequence[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0]}{more}"
