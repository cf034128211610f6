"""The outputs of a run: encoders, curves and pictures, written by the first process.

Every process calls `pretrain`, so that they all take part in what communicates.
"""

import copy
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.encoders import checkpoint
from pipeline.encoders.checkpoint import Checkpoint
from pipeline.encoders.snapshots import find_snapshots, snapshot_folder
from pipeline.pretrain import diagnostics, distributed
from pipeline.pretrain.calibration import calibrate_batch_norms
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.resume import TrainingStates, remove_forgotten

logger = logging.getLogger(__name__)

EXAMPLE_CLIPS = 16


@dataclass(frozen=True)
class Writer:
    """Where the outputs of a run go."""

    random: Path  # folder: the encoder at its initialisation
    pretrained: Path  # folder: the encoder at the end, curves, pictures, snapshots
    throughput: Path  # CSV
    live: Path  # folder: the curves so far, for `pipeline.commands.watch`
    work: Path  # folder that survives an interruption, for snapshots

    def write_initial(self, trainer: Trainer) -> None:
        """Write the encoder before any update."""
        initial, p = frozen_encoder(trainer), trainer.settings.pretrain
        if p.random_calibration_clips:
            clips = diagnostics.spread_clips(trainer.loader, p.random_calibration_clips)
            _, crops = diagnostics.random_crops(trainer.loader, clips, p.seed)
            calibrate_batch_norms(initial.encoder.eval(), crops)
        checkpoint.save(initial, self.random)

    def observe(self, trainer: Trainer) -> None:
        """Write the curves so far, and a snapshot of the encoder if one is due."""
        trainer.fetch()
        try:
            self.live.mkdir(parents=True, exist_ok=True)
            write_curves(trainer, self.live)
            trainer.throughput.table().to_csv(self.live / "throughput.csv", index=False)
        except OSError as error:  # the run does not depend on them
            logger.warning("the curves so far could not be written: %s", error)
        epoch, steps_into_next = divmod(trainer.step, trainer.steps_per_epoch)
        every = trainer.settings.pretrain.snapshot_epochs
        if every and not steps_into_next and epoch % every == 0:
            folder = snapshot_folder(self.work, epoch)
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.save(frozen_encoder(trainer), folder)

    def write_final(
        self, trainer: Trainer, correlations: dict[str, Tensor], examples: tuple[Tensor, ...]
    ) -> None:
        """Write the encoder after the last update, and the data of the report's figures."""
        checkpoint.save(frozen_encoder(trainer), self.pretrained)
        write_curves(trainer, self.pretrained)
        trainer.throughput.table().to_csv(self.throughput, index=False)
        for epoch, folder in find_snapshots(self.work).items():
            shutil.copytree(folder, snapshot_folder(self.pretrained, epoch))
        matrices = {name: matrix.cpu() for name, matrix in correlations.items()}
        save_file(matrices, self.pretrained / "correlation.safetensors")
        clips, *pictures = examples
        clip_id = "\n".join(trainer.features.clip_id[i] for i in clips)
        names = ("crop", "view_1", "view_2")
        views = {n: picture.cpu().contiguous() for n, picture in zip(names, pictures, strict=True)}
        save_file(views, self.pretrained / "views.safetensors", {"clip_id": clip_id})


class NoWriter:
    """Replaces `Writer` in all processes but the first."""

    def write_initial(self, trainer: Trainer) -> None:
        """Do nothing."""

    def observe(self, trainer: Trainer) -> None:
        """Do nothing."""

    def write_final(
        self, trainer: Trainer, correlations: dict[str, Tensor], examples: tuple[Tensor, ...]
    ) -> None:
        """Do nothing."""


def pretrain(trainer: Trainer, states: TrainingStates, writer: Writer | NoWriter) -> None:
    """Train from the last state, if there is one, and write all outputs."""
    writer.write_initial(trainer)
    before = diagnostics.correlation(trainer.updater)
    resume(trainer, states)
    trainer.run(states, partial(writer.observe, trainer))
    after = diagnostics.correlation(trainer.updater)
    examples = diagnostics.example_views(trainer.updater, EXAMPLE_CLIPS)
    writer.write_final(trainer, {"before": before, "after": after}, examples)


def resume(trainer: Trainer, states: TrainingStates) -> None:
    """Continue from the last state of the same parameters, features and code, if there is one."""
    if distributed.rank() == 0:
        remove_forgotten(states.folder)
    state = states.newest()
    if state is not None:
        trainer.load_state_dict(state)
        position = trainer.step, trainer.steps, states.folder
        logger.info("continuing from step %d of %d; states are in %s", *position)
        return
    features, p = trainer.features, trainer.settings.pretrain
    logger.info(
        "%d clips (%d more are left out), %d steps of %d on %s; %s has no state of these "
        "parameters, features and code, so this run starts from step 0",
        len(features),
        len(features.clip_id) - len(features),
        trainer.steps,
        p.batch_size,
        trainer.device,
        states.folder,
    )


def frozen_encoder(trainer: Trainer) -> Checkpoint:
    """Return a copy of the current encoder, with all that is needed to use it."""
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
    """Write history.csv, a row for each logged step, and epochs.csv, one for each epoch."""
    trainer.history_table().to_csv(folder / "history.csv", index=False, float_format="%.6g")
    epochs = pd.DataFrame(trainer.history.epochs)
    epochs.to_csv(folder / "epochs.csv", index=False, float_format="%.6g")


def data_identity(features: Path, excluded: Path) -> list[str]:
    """Return what identifies the training data: sizes, statistics, clips left out."""
    paths = features / "manifest.json", features / "stats.json", excluded
    return [path.read_text() for path in paths]


def describe_device(trainer: Trainer) -> str:
    """Return what may change the last bits of a run: processes, device, precision, torch."""
    count, kind = distributed.world_size(), trainer.device.type
    return f"{count} x {kind}, fast {trainer.updater.fast}, {torch.__version__}"
