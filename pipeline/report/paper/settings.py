"""The settings behind the paper's tables 1 to 3, under their keys in params.yaml.

Of pre-training on AudioSet: paper sections 2 and 3.1 and appendix A.1, report p. 33; of embedding:
the authors' wrapper with its faults (docs/reference-faults.md, B1 to B5). What differs from the
committed params.yaml is in the option files `presets/audioset-<encoder>`, the rest is below.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PRESETS = Path(__file__).parents[3] / "presets"
# Options of a preset that leave the weights and embeddings as they are; `score` is compared apart.
WITHOUT_EFFECT = ("pretrain.log_every", "pretrain.snapshot_epochs", "score.", "encoder=")
DEFAULTS: dict[str, Any] = {
    "logmel.sample_rate": 16_000,
    "logmel.n_fft": 1024,
    "logmel.win_length": 1024,
    "logmel.hop_length": 160,
    "logmel.n_mels": 64,
    "logmel.f_min": 60.0,
    "logmel.f_max": 7800.0,
    "augment.pre_post_norm": False,
    "augment.mixup": True,
    "augment.mixup_alpha": 0.2,
    "augment.mixup_background": "bank",
    "augment.mixup_bank": 2048,
    "augment.noise": "none",
    "augment.rrc": True,
    "augment.rrc_canvas_mels": 1.0,
    "augment.rrc_canvas_frames": 1.5,
    "augment.rrc_mel_scale": [0.6, 1.5],
    "augment.rrc_frame_scale": [0.6, 1.5],
    "augment.rlf": True,
    "augment.rlf_gain": 1.0,
    "projector.hidden_layers": 1,
    "loss.objective": "barlow_twins",
    "loss.alpha": 1.0,
    "loss.lambda": 0.005,
    "loss.hsic": False,
    "loss.target": "shared",
    "loss.predictor": False,
    "pretrain.crops_per_clip": 1,
    "pretrain.crop_frames": 96,
    "hear.mode": "reference",
    "hear.normalization": "reference",
    "hear.window_ms": 950.0,
    "hear.edges": "cut",
    "hear.layers": "last",
    "hear.mel_mean": False,
}
ENCODER_DEFAULTS: dict[str, dict[str, Any]] = {
    "audiontt": {
        "channels": 64,
        "hidden_dim": 2048,
        "embed_dim": 3072,
        "dropout": 0.3,
        "optimizer.momentum": 0.9,
        "optimizer.trust_coefficient": 0.001,
    },
    "vitc": {
        "position": "sincos",
        "pool": "cls",
        "mask_ratio": 0.0,
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.999,
    },
}


@cache
def paper_settings(encoder: str) -> dict[str, Any]:
    """Return the paper's settings of an encoder, audiontt or vitc, by dotted key, sorted."""
    defaults = ENCODER_DEFAULTS[encoder]
    own = {f"encoders.{encoder}.{key}": value for key, value in defaults.items()}
    preset = read_preset(PRESETS / f"audioset-{encoder}")
    return dict(sorted((DEFAULTS | own | preset).items()))


def read_preset(path: Path) -> dict[str, Any]:
    """Return the options `-S key=value` of a file, without those in WITHOUT_EFFECT."""
    options = [line.removeprefix("-S ") for line in path.read_text().splitlines()]
    pairs = [option.split("=") for option in options if not option.startswith(WITHOUT_EFFECT)]
    yaml = YAML(typ="safe", pure=True)
    return {key: yaml.load(value) for key, value in pairs}


def differing(params: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value and the paper's value of each setting that differs from the paper's.

    Args:
        params: those of a run by dotted key.
    """
    for key, value in paper_settings(params["encoder"]).items():
        if params[key] not in (value, [value]):
            yield key, params[key], value
