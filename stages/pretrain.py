"""Stage `pretrain`: Audio Barlow Twins on the log-mel shards.

Reads   data/logmel
Writes  data/pretrain   checkpoint, history.csv, correlation.npz, views.npz
        data/random     the same encoder at its initialisation, the baseline of the evaluation
Params  encoder, encoders.<encoder>, augment, projector, loss, pretrain
"""

import copy
import logging
from pathlib import Path

import numpy as np
import torch

from pipeline import checkpoint, params
from pipeline.checkpoint import Checkpoint
from pipeline.dataset import Features, load_features
from pipeline.device import choose_device
from pipeline.params.data import ComputeParams
from pipeline.params.method import (
    AugmentParams,
    LossParams,
    PretrainParams,
    ProjectorParams,
    check_encoder,
)
from pipeline.pretrain import Settings, Trainer
from pipeline.stage import Stage, arguments, run

logger = logging.getLogger(__name__)

EXAMPLE_CLIPS = 16


def main(stage: Stage) -> None:
    """Run the stage."""
    settings = load_settings(stage)
    device = choose_device(params.load("compute", ComputeParams).device)
    features = load_features(Path("data/logmel"))
    trainer = Trainer(settings, features, device)
    logger.info(
        "%d clips, %d steps of %d on %s",
        len(features),
        settings.pretrain.epochs * trainer.steps_per_epoch,
        settings.pretrain.batch_size,
        device,
    )
    with stage.output("data/random") as random, stage.output("data/pretrain") as trained:
        checkpoint.save(frozen(trainer), random)
        before = trainer.probe_correlation()
        trainer.run()
        checkpoint.save(frozen(trainer), trained)
        write_curves(trainer, features, before, trained)


def load_settings(stage: Stage) -> Settings:
    """Return every section that pre-training reads."""
    encoder = stage.value("encoder")
    return Settings(
        encoder_name=encoder,
        encoder=stage.load(f"encoders.{encoder}", check_encoder(encoder)),
        augment=stage.load("augment", AugmentParams),
        projector=stage.load("projector", ProjectorParams),
        loss=stage.load("loss", LossParams),
        pretrain=stage.load("pretrain", PretrainParams),
    )


def frozen(trainer: Trainer) -> Checkpoint:
    """Return the trainer's encoder as it is now, with what it needs to be used."""
    settings, features = trainer.settings, trainer.features
    return Checkpoint(
        encoder=copy.deepcopy(trainer.model.encoder),
        encoder_name=settings.encoder_name,
        encoder_params=settings.encoder,
        log_mel=features.log_mel,
        mean=features.mean,
        std=features.std,
        crop_frames=settings.pretrain.crop_frames,
    )


def write_curves(trainer: Trainer, features: Features, before: torch.Tensor, folder: Path) -> None:
    """Write what the report shows of the run."""
    trainer.history_table().to_csv(folder / "history.csv", index=False, float_format="%.6g")
    after = trainer.probe_correlation()
    np.savez(folder / "correlation.npz", before=before.cpu(), after=after.cpu())
    clips, *pictures = trainer.example_views(EXAMPLE_CLIPS)
    clip_id = [features.clip_id[i] for i in clips]
    crop, view_1, view_2 = (picture.cpu() for picture in pictures)
    np.savez(folder / "views.npz", clip_id=clip_id, crop=crop, view_1=view_1, view_2=view_2)


if __name__ == "__main__":
    run("pretrain", main, *arguments())
