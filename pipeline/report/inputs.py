"""The report's inputs, read and checked.

data/ledger.csv             see `pipeline.corpus.clips.ledger`
data/<source>/labels.csv    names of labels, see `pipeline.corpus.labels`
reports/throughput.csv      samples per second and share of waiting over the steps
data/pretrained/
    encoder.json               the encoder's name, settings and front end
    history.csv                loss, its parts, learning rates and norms over the steps
    epochs.csv                 loss and, unless pretrain.rank_clips = 0, ranks of y and z by epoch
    correlation.safetensors    before, after: [D, D]
    views.safetensors          crop, view_1, view_2: [N, F, T]; metadata clip_id, N lines
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from pipeline.core.params import check
from pipeline.corpus import labels
from pipeline.corpus.clips import ledger
from pipeline.features.params import LogMelParams

LEDGER_TEXT = ["clip_id", "labels", "status", "stage", "reason"]
LEDGER_NUMBERS = ["start_s", "end_s", "duration_s"]
EPOCH_COLUMNS = ["epoch", "step", "loss", "invariance", "redundancy"]
HISTORY_COLUMNS = ["step", "epoch", "loss", "invariance", "redundancy", "noise_floor", "lr"]


@dataclass(frozen=True)
class Pretraining:
    """What `data/pretrained` records of the run, besides the weights."""

    encoder: str
    encoder_params: dict[str, Any]  # without the optimizer's
    optimizer: dict[str, Any]  # name, lr
    log_mel: LogMelParams
    history: pd.DataFrame
    epochs: pd.DataFrame
    throughput: pd.DataFrame
    correlation: dict[str, np.ndarray]  # "before", "after": [D, D]
    clip_ids: list[str]
    pictures: Float[np.ndarray, "N 3 F T"]  # clip, view 1, view 2


def read_pretraining(folder: Path, encoder: str, throughput: Path) -> Pretraining:
    """Read `data/pretrained` and reports/throughput.csv.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file does not have its format, or is of another encoder.
    """
    path = folder / "encoder.json"
    _require(path, "pretrain")
    try:
        saved = json.loads(path.read_bytes())
        name, log_mel = saved["encoder"], saved["logmel"]
        params = {k: v for k, v in saved["params"].items() if k != "optimizer"}
        optimizer = {key: saved["params"]["optimizer"][key] for key in ("name", "lr")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not describe an encoder ({error!r}). {_remedy('pretrain')}"
        ) from None
    if name != encoder:
        raise ValueError(f"{path} is of encoder {name}, not {encoder}. {_remedy('pretrain')}")
    clip_ids, pictures = _read_views(folder / "views.safetensors")
    return Pretraining(
        encoder=name,
        encoder_params=params,
        optimizer=optimizer,
        log_mel=check(log_mel, LogMelParams, prefix="logmel", path=path),
        history=read_history(folder / "history.csv"),
        epochs=read_epochs(folder / "epochs.csv"),
        throughput=read_curve(throughput, ["step"]),
        correlation=_read_correlation(folder / "correlation.safetensors"),
        clip_ids=clip_ids,
        pictures=pictures,
    )


def read_history(path: Path) -> pd.DataFrame:
    """Read the curves of pre-training.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, there are no rows, or a value is not a finite number.
    """
    history = read_curve(path, HISTORY_COLUMNS)
    _require_rows(history, path, "pretrain")
    faulty = ~np.isfinite(history[HISTORY_COLUMNS].to_numpy(dtype=float)).all(axis=1)
    if faulty.any():
        row = int(faulty.argmax())
        raise ValueError(
            f"{path}, row {row + 1}: not all values are finite numbers: "
            f"{history.iloc[row].to_dict()}. {_remedy('pretrain')}"
        )
    return history


def read_epochs(path: Path) -> pd.DataFrame:
    """Read the means of all epochs, and ranks where they were measured.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or there are no rows.
    """
    epochs = read_curve(path, EPOCH_COLUMNS)
    _require_rows(epochs, path, "pretrain")
    return epochs


def read_curve(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a curve, which may have no rows and further columns; NaN replaces what is not a number.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not CSV, or a column is missing.
    """
    _require(path, "pretrain")
    try:
        curve = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # also pandas' own parser errors
        raise ValueError(f"{path}: {error} {_remedy('pretrain')}") from None
    if missing := [name for name in columns if name not in curve]:
        raise ValueError(f"{path} has no column {', '.join(missing)}. {_remedy('pretrain')}")
    return curve.apply(pd.to_numeric, errors="coerce")


def read_ledger(path: Path) -> pd.DataFrame:
    """Read the columns of the ledger that the page shows; an unknown duration is 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a ledger, or there are no rows.
    """
    _require(path, "logmel")
    try:
        columns = ledger.read_columns(path, LEDGER_TEXT + LEDGER_NUMBERS)
    except ValueError as error:
        raise ValueError(f"{error} {_remedy('logmel')}") from None
    table = pd.DataFrame(columns)
    _require_rows(table, path, "logmel")
    table[LEDGER_NUMBERS] = table[LEDGER_NUMBERS].astype(float).fillna(0.0)
    return table


def read_label_names(path: Path) -> dict[str, str]:
    """Return the names of labels by their ids; none if there is no such file.

    Raises:
        ValueError: it lacks the columns mid and display_name.
    """
    return labels.read_names(path) if path.exists() else {}


def _remedy(stage: str) -> str:
    return f"Run `dvc repro {stage}`."


def _require(path: Path, stage: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. {_remedy(stage)}")


def _require_rows(table: pd.DataFrame, path: Path, stage: str) -> None:
    if table.empty:
        raise ValueError(f"{path} has no rows. {_remedy(stage)}")


def _read_arrays(path: Path, keys: list[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the named arrays of a safetensors file, and its metadata."""
    _require(path, "pretrain")
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} must hold the arrays {', '.join(keys)}: {error}. {_remedy('pretrain')}"
        ) from None


def _read_correlation(path: Path) -> dict[str, np.ndarray]:
    content, _ = _read_arrays(path, ["before", "after"])
    shapes = {matrix.shape for matrix in content.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or shape[0] != shape[1] or shape[0] < 2:
        actual = ", ".join(f"{name} {matrix.shape}" for name, matrix in content.items())
        raise ValueError(
            f"{path}: expected two square matrices, got {actual}. {_remedy('pretrain')}"
        )
    return content


def _read_views(path: Path) -> tuple[list[str], Float[np.ndarray, "N 3 F T"]]:
    content, metadata = _read_arrays(path, ["crop", "view_1", "view_2"])
    pictures = [*content.values()]
    shapes = [picture.shape for picture in pictures]
    clip_id = metadata.get("clip_id", "").splitlines()
    n = len(clip_id)
    if n == 0 or len(set(shapes)) != 1 or len(shapes[0]) != 3 or shapes[0][0] != n:
        raise ValueError(
            f"{path}: expected crop, view_1, view_2 of shape [clips, mel bins, frames] and as many "
            f"clip_id, got {shapes} and {n}. {_remedy('pretrain')}"
        )
    return clip_id, np.stack(pictures, axis=1)
