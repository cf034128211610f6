"""The settings that the paper's tables 1 to 3 were made with, under their keys in params.yaml.

Of pre-training on AudioSet: paper sections 2 and 3.1 and appendix A.1, report p. 33; of embedding:
the authors' wrapper with its faults (docs/reference-faults.md, B1 to B5).
"""

from collections.abc import Iterator, Mapping
from typing import Any

COMMON: dict[str, Any] = {
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
    "projector.hidden_dim": 8192,
    "projector.out_dim": 1048,
    "loss.objective": "barlow_twins",
    "loss.alpha": 1.0,
    "loss.lambda": 0.005,
    "loss.hsic": False,
    "loss.target": "shared",
    "loss.predictor": False,
    "pretrain.epochs": 100,
    "pretrain.batch_size": 128,
    "pretrain.crops_per_clip": 1,
    "pretrain.crop_frames": 96,
    "pretrain.schedule": "cosine",
    "pretrain.warmup_epochs": 1.0,
    "pretrain.cosine_horizon": 1.0,
    "hear.mode": "reference",
    "hear.normalization": "reference",
    "hear.window_ms": 950.0,
    "hear.hop_ms": 50.0,
    "hear.edges": "cut",
    "hear.layers": "last",
    "hear.mel_mean": False,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "audiontt": {
        "channels": 64,
        "hidden_dim": 2048,
        "embed_dim": 3072,
        "dropout": 0.3,
        "optimizer.name": "lars",
        "optimizer.lr": 0.4,
        "optimizer.lr_biases": 0.0048,
        "optimizer.weight_decay": 1e-5,
        "optimizer.momentum": 0.9,
        "optimizer.trust_coefficient": 0.001,
    },
    "vitc": {
        "size": "base",
        "patch_mels": 16,
        "patch_frames": 8,
        "position": "sincos",
        "pool": "cls",
        "mask_ratio": 0.0,
        "optimizer.name": "adamw",
        "optimizer.lr": 6.25e-5,
        "optimizer.weight_decay": 0.24,
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.999,
    },
}


def differing(params: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value and the paper's value of each setting that is not the paper's.

    Args:
        params: those of a run by dotted key.
    """
    encoder = params["encoder"]
    own = {f"encoders.{encoder}.{key}": value for key, value in ENCODERS[encoder].items()}
    for key, value in (COMMON | own).items():
        if params[key] not in (value, [value]):
            yield key, params[key], value
