"""Small training runs on synthetic sounds, for the tests of the trainer."""

from dataclasses import replace
from pathlib import Path

import torch
from ruamel.yaml import YAML
from synthetic_features import write_folder
from torch import Generator

from pipeline.config import load_config
from pipeline.pretrain.index import Features
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.model import Settings

ROOT = Path(__file__).parents[1]
CONFIG = load_config()
CPU = torch.device("cpu")
SMALL = {
    "audiontt": {"channels": 8, "hidden_dim": 64, "embed_dim": 192},
    "vitc": {"size": "tiny", "patch_mels": 16, "patch_frames": 16},
    "vit": {"size": "tiny", "patch_mels": 16, "patch_frames": 16},
}
# Views that differ by dropout alone: the loss of a few steps falls with every seed.
NO_AUGMENTATION = {"augment__mixup": False, "augment__rrc": False, "augment__rlf": False}


def settings(encoder="audiontt", **changes):
    """Small settings based on params.yaml, with changes such as `loss__alpha=0.0`."""
    sections = {
        "encoder": getattr(CONFIG.encoders, encoder).model_copy(update=SMALL[encoder]),
        "projector": CONFIG.projector.model_copy(update={"hidden_dim": 128, "out_dim": 32}),
        "pretrain": CONFIG.pretrain.model_copy(
            update={"epochs": 2, "batch_size": 16, "crop_frames": 32, "rank_clips": 16}
        ),
        "augment": CONFIG.augment.model_copy(update={"mixup_bank": 64}),
        "loss": CONFIG.loss,
    }
    for key, value in changes.items():
        name, _, field = key.partition("__")
        if name == "optimizer":
            optimizer = sections["encoder"].optimizer.model_copy(update={field: value})
            name, field, value = "encoder", "optimizer", optimizer
        assert field in type(sections[name]).model_fields, key
        sections[name] = sections[name].model_copy(update={field: value})
    return Settings(encoder_name=encoder, **sections)


def features(clips=64, frames=40):
    """Clips that differ in which mel bins are loud and how they fade."""
    generator = Generator().manual_seed(0)
    level = torch.randn(clips, 1, 64, generator=generator)
    fade = torch.randn(clips, 1, 1, generator=generator) * torch.linspace(-1, 1, frames)[:, None]
    log_mel = level + fade + 2 * torch.randn(clips, frames, 64, generator=generator)
    start = torch.arange(clips + 1) * frames
    clip_id = [f"clip{i}" for i in range(clips)]
    return Features(
        log_mel.flatten(0, 1).half(), start, clip_id, CONFIG.logmel, 0.0, float(log_mel.std())
    )


def trainer(encoder="audiontt", fast=None, **changes):
    """A trainer at its beginning."""
    return Trainer(settings(encoder, **changes), features(), CPU, fast)


def with_optimizer(run, **changes):
    """The same settings with another optimizer."""
    optimizer = run.encoder.optimizer.model_copy(update=changes)
    return replace(run, encoder=run.encoder.model_copy(update={"optimizer": optimizer}))


def set_up_stage(folder, devices=1, batch_size=16):
    """Write parameters and features for the stage `pretrain` into a folder."""
    content = YAML().load((ROOT / "params.yaml").read_text())
    content["encoders"]["audiontt"] |= {"channels": 8, "hidden_dim": 32, "embed_dim": 160}
    content["projector"] |= {"hidden_dim": 32, "out_dim": 16}
    content["augment"] |= {"mixup_bank": 32, "pre_post_norm": True}
    content["pretrain"] |= {"epochs": 2, "batch_size": batch_size, "rank_clips": 8}
    content["compute"]["devices"] = devices
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(content, file)
    features = folder / "data" / "logmel"
    features.mkdir(parents=True)
    write_folder(features, [[100] * 10, [120] * 10, [90] * 10, [110] * 10])
    (features / "stats.json").write_text('{"mean": 300.0, "std": 200.0}')
    (folder / "data" / "excluded.csv").write_text("clip_id\ns1c4\n")
