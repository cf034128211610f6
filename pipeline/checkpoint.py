"""An encoder for use: its weights, front end and statistics in one folder.

encoder.safetensors    weights and buffers
encoder.json           encoder and its settings, front end, mean and std of the training data
"""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.encoders import Encoder, build_encoder
from pipeline.params import check
from pipeline.params.data import LogMelParams
from pipeline.params.method import EncoderParams, parse_encoder

WEIGHTS = "encoder.safetensors"
SETTINGS = "encoder.json"


@dataclass(frozen=True)
class Checkpoint:
    """An encoder with all that is needed to give it audio."""

    encoder: Encoder
    encoder_name: str
    encoder_params: EncoderParams
    log_mel: LogMelParams
    mean: float  # of the log-mels of the pre-training data
    std: float
    crop_frames: int  # length of the inputs in pre-training


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint into an existing folder."""
    weights = {k: v.contiguous().cpu() for k, v in checkpoint.encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    settings = {
        "encoder": checkpoint.encoder_name,
        "params": checkpoint.encoder_params.model_dump(by_alias=True),
        "logmel": checkpoint.log_mel.model_dump(by_alias=True),
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "crop_frames": checkpoint.crop_frames,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, given its folder or its weights file; the encoder is in eval mode.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, or weights and settings do not belong together.
    """
    folder = path if path.is_dir() else path.parent
    for name in (WEIGHTS, SETTINGS):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder / name} does not exist. A checkpoint is a folder with {WEIGHTS} and "
                f"{SETTINGS}, such as data/pretrain after `dvc repro pretrain`."
            )
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        params = parse_encoder(settings["encoder"], settings["params"])
        log_mel = check(settings["logmel"], LogMelParams, "logmel", folder / SETTINGS)
        encoder = build_encoder(
            settings["encoder"], params, log_mel.n_mels, settings["crop_frames"]
        )
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is not a usable checkpoint: {error}") from error
    return Checkpoint(
        encoder=encoder.eval(),
        encoder_name=settings["encoder"],
        encoder_params=params,
        log_mel=log_mel,
        mean=settings["mean"],
        std=settings["std"],
        crop_frames=settings["crop_frames"],
    )
