"""The checkpoint of an encoder: weights, front end and statistics in one folder.

encoder.safetensors    weights and buffers
encoder.json           encoder and its settings, front end, mean and std of the training data,
                       SHA-256 of the weights
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.core.files import sha256
from pipeline.core.params import Section, check
from pipeline.encoders.build import Encoder, build_encoder
from pipeline.encoders.params import EncoderParams, check_encoder
from pipeline.features.params import LogMelParams

WEIGHTS = "encoder.safetensors"
SETTINGS = "encoder.json"


@dataclass(frozen=True)
class Checkpoint:
    """An encoder with all that is needed to apply it to audio."""

    encoder: Encoder
    encoder_name: str
    encoder_params: EncoderParams
    log_mel: LogMelParams
    mean: float  # of the log-mels of the pre-training data
    std: float
    crop_frames: int  # length of the inputs in pre-training


class Settings(Section):
    """Content of encoder.json."""

    encoder: str
    params: dict[str, Any]  # of the encoder
    logmel: LogMelParams
    mean: float
    std: float = Field(gt=0)
    crop_frames: int = Field(ge=1)
    weights_sha256: str = ""  # empty: unknown


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint into an existing folder.

    Raises:
        OSError: a file cannot be written.
    """
    weights = {k: v.contiguous().cpu() for k, v in checkpoint.encoder.state_dict().items()}
    try:
        save_file(weights, folder / WEIGHTS)
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS} cannot be written: {error}") from error
    settings = {
        "encoder": checkpoint.encoder_name,
        "params": checkpoint.encoder_params.model_dump(by_alias=True),
        "logmel": checkpoint.log_mel.model_dump(by_alias=True),
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "crop_frames": checkpoint.crop_frames,
        "weights_sha256": sha256(folder / WEIGHTS),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, given its folder or its weights file; the encoder is in eval mode.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, or weights and settings do not match.
    """
    folder = path if path.is_dir() else path.parent
    settings = read_settings(folder)
    source = folder / SETTINGS
    try:
        params = check(settings.params, check_encoder(settings.encoder), "params", source)
        n_mels = settings.logmel.n_mels
        encoder = build_encoder(settings.encoder, params, n_mels, settings.crop_frames)
    except ValueError as error:
        raise _unusable(source, error) from None
    try:
        _check_weights(folder / WEIGHTS, settings.weights_sha256)
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError, ValueError) as error:
        raise _unusable(folder / WEIGHTS, error) from error
    return Checkpoint(
        encoder=encoder.eval(),
        encoder_name=settings.encoder,
        encoder_params=params,
        log_mel=settings.logmel,
        mean=settings.mean,
        std=settings.std,
        crop_frames=settings.crop_frames,
    )


def read_settings(folder: Path) -> Settings:
    """Read the settings of the checkpoint in a folder.

    Raises:
        FileNotFoundError: there is no settings file.
        ValueError: it is not JSON, or a key is missing, unknown or has a wrong value.
    """
    path = _existing(folder / SETTINGS)
    try:
        return check(json.loads(path.read_bytes()), Settings, path=path)
    except (ValueError, RecursionError) as error:
        raise _unusable(path, error) from None


def _check_weights(path: Path, expected: str) -> None:
    checksum = sha256(_existing(path))
    if expected and checksum != expected:
        raise ValueError(f"its SHA-256 is {checksum}, expected {expected} as in {SETTINGS}.")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. A checkpoint is a folder with {WEIGHTS} and {SETTINGS}, such "
            "as data/pretrained after `dvc repro pretrain`."
        )
    return path


def _unusable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is not a usable checkpoint: {error}\nRestore it, or run `dvc repro pretrain`."
    )
