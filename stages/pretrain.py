"""Stage `pretrain`: Audio Barlow Twins on the log-mel shards.

Reads   data/logmel; data/excluded.csv, the clips that are left out
Writes  data/pretrained   checkpoint, history.csv, epochs.csv, correlation.safetensors,
                        views.safetensors, snapshots/
        data/random     the same encoder at its initialisation, the baseline of the evaluation
        reports/throughput.csv
Params  encoder, encoders.<encoder>, augment, projector, loss, pretrain

An interrupted run goes on from its last state, in `.work/pretrain/`; where there are several
devices, torchrun runs this module once for each.
"""

import copy
import logging
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from pipeline.core import params
from pipeline.core.code_identity import code_identity
from pipeline.core.device import choose_device, make_deterministic
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import Stage, arguments, root, run
from pipeline.encoders import checkpoint
from pipeline.encoders.checkpoint import Checkpoint
from pipeline.encoders.params import check_encoder
from pipeline.features import excluded
from pipeline.pretrain import distributed
from pipeline.pretrain.index import epoch_plan, load_features
from pipeline.pretrain.params import AugmentParams, LossParams, PretrainParams, ProjectorParams
from pipeline.pretrain.resume import Checkpoints, remove_forgotten
from pipeline.pretrain.trainer import Settings, Trainer

logger = logging.getLogger(__name__)

FEATURES = Path("data/logmel")
EXCLUDED = Path("data/excluded.csv")
EXAMPLE_CLIPS = 16


def main(stage: Stage) -> None:
    """Run the stage."""
    compute = params.load("compute", ComputeParams)
    settings = load_settings(stage)
    if compute.devices > 1 and not distributed.is_launched():
        epoch_plan(2**20, settings.pretrain.batch_size, 0, 0).share(0, compute.devices)
        distributed.relaunch("stages.pretrain", compute.devices)
    if compute.deterministic:
        make_deterministic()
    with distributed.process_group(choose_device(compute.device)) as device:
        features = load_features(FEATURES).without(excluded.read(EXCLUDED))
        fast = None if compute.fast == "auto" else compute.fast
        trainer = Trainer(settings, features, device, fast, compute.features)
        code = code_identity(Trainer.__module__)
        how = (
            f"{distributed.world_size()} x {device.type}, fast {trainer.fast}, {torch.__version__}"
        )
        work = stage.work_folder(code, *identity(FEATURES, EXCLUDED), how)
        checkpoints = Checkpoints(work, compute.checkpoint_minutes, compute.checkpoints)
        if distributed.rank() == 0:
            train_and_publish(stage, trainer, checkpoints)
        else:
            trainer.probe_correlation()
            resume(trainer, checkpoints)
            trainer.run(checkpoints)
            trainer.probe_correlation()
            trainer.example_views(EXAMPLE_CLIPS)


def train_and_publish(stage: Stage, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Train, or go on, and put all outputs in their places."""
    remove_forgotten(checkpoints.folder)
    with ExitStack() as outputs:
        random = outputs.enter_context(stage.output("data/random"))
        trained = outputs.enter_context(stage.output("data/pretrained"))
        speed = outputs.enter_context(stage.output("reports/throughput.csv", file=True))
        checkpoint.save(frozen(trainer), random)
        before = trainer.probe_correlation()
        resume(trainer, checkpoints)
        snapshots = checkpoints.folder / "snapshots"
        trainer.run(checkpoints, partial(observe, trainer, snapshots))
        checkpoint.save(frozen(trainer), trained)
        write_curves(trainer, trained)
        trainer.throughput.table().to_csv(speed, index=False)
        if snapshots.exists():
            shutil.copytree(snapshots, trained / "snapshots")
        write_pictures(trainer, before, trained)


def resume(trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Go on from the last state of the same parameters, features and code, if there is one."""
    steps = trainer.settings.pretrain.epochs * trainer.steps_per_epoch
    state = checkpoints.newest()
    if state is not None:
        trainer.load_state_dict(state)
        logger.info(
            "going on from step %d of %d; states in %s", trainer.step, steps, checkpoints.folder
        )
        return
    logger.info(
        "%d clips (%d more are left out), %d steps of %d on %s; no state of this run's parameters, "
        "features and code in %s, so it starts afresh",
        len(trainer.features),
        len(trainer.features.clip_id) - len(trainer.features),
        steps,
        trainer.settings.pretrain.batch_size,
        trainer.device,
        checkpoints.folder,
    )


def observe(trainer: Trainer, snapshots: Path) -> None:
    """Write the curves so far for `pipeline.commands.watch`, and a snapshot where one is due."""
    trainer.fetch()
    live = root() / ".work" / "live"
    try:
        live.mkdir(parents=True, exist_ok=True)
        write_curves(trainer, live)
        trainer.throughput.table().to_csv(live / "throughput.csv", index=False)
    except OSError as error:  # nothing depends on them
        logger.warning("the curves so far could not be written: %s", error)
    epoch, begun = divmod(trainer.step, trainer.steps_per_epoch)
    every = trainer.settings.pretrain.snapshot_epochs
    if every and not begun and epoch % every == 0:
        folder = snapshots / f"epoch-{epoch:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(frozen(trainer), folder)


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


def identity(features: Path, excluded: Path) -> list[str]:
    """Return what tells these features from others: statistics, sizes, clips that are left out."""
    paths = features / "manifest.json", features / "stats.json", excluded
    return [path.read_text() for path in paths]


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


def write_curves(trainer: Trainer, folder: Path) -> None:
    """Write the curves: one row for each logged step, one for each epoch."""
    trainer.history_table().to_csv(folder / "history.csv", index=False, float_format="%.6g")
    epochs = pd.DataFrame(trainer.history.epochs)
    epochs.to_csv(folder / "epochs.csv", index=False, float_format="%.6g")


def write_pictures(trainer: Trainer, before: torch.Tensor, folder: Path) -> None:
    """Write what the report draws: the cross-correlation before and after, clips and views."""
    after = trainer.probe_correlation()
    matrices = {"before": before.cpu(), "after": after.cpu()}
    save_file(matrices, folder / "correlation.safetensors")
    clips, *pictures = trainer.example_views(EXAMPLE_CLIPS)
    clip_id = "\n".join(trainer.features.clip_id[i] for i in clips)
    names = ("crop", "view_1", "view_2")
    views = {n: picture.cpu().contiguous() for n, picture in zip(names, pictures, strict=True)}
    save_file(views, folder / "views.safetensors", {"clip_id": clip_id})


if __name__ == "__main__":
    run("pretrain", main, *arguments())
