"""The training loop: epochs of steps, with curves, saved states and stops between steps."""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from pipeline.encoders.params import ViTParams
from pipeline.pretrain import diagnostics, distributed, masking
from pipeline.pretrain.index import EpochSampler, Features, sample_epoch
from pipeline.pretrain.loader import choose_loader
from pipeline.pretrain.model import Settings
from pipeline.pretrain.optim import lr_factor
from pipeline.pretrain.resume import TrainingStates, stop_after_step
from pipeline.pretrain.seeds import Stream, derive_seed
from pipeline.pretrain.step import Updater
from pipeline.pretrain.telemetry import History, Throughput, norms

logger = logging.getLogger(__name__)

FETCH_EVERY = 64  # logged steps after which the host waits for a GPU
AGREE_EVERY = 16  # steps after which several processes agree whether to save or stop
OBSERVE_EVERY_S = 10  # between two calls of `observe`, at least
OBSERVE_SHARE = 50  # times its own duration between two calls, at least


class Trainer:
    """A training run: model and updater, data, curves, and the number of steps done."""

    def __init__(
        self,
        settings: Settings,
        features: Features,
        device: torch.device,
        fast: bool | None = None,
        where: str = "auto",
    ) -> None:
        """Prepare a run.

        Args:
            fast: as in `pipeline.pretrain.step`; None: on a GPU.
            where: memory for the features, as in `choose_loader`; does not change results.
        """
        p, processes = settings.pretrain, distributed.world_size()
        self.settings, self.features, self.device = settings, features, device
        self.steps_per_epoch, batch_size = self._sample(0).clip.shape
        self.steps = p.epochs * self.steps_per_epoch
        self.loader = choose_loader(features, p.crop_frames, device, where, processes)
        fast = device.type == "cuda" if fast is None else fast
        self.updater = Updater(settings, self.loader, batch_size, fast)
        self.model = self.updater.model
        self.step = 0  # updates done
        self.history = History()
        self.throughput = Throughput()

    def run(
        self,
        states: TrainingStates | None = None,
        observe: Callable[[], None] = lambda: None,
    ) -> None:
        """Train until the last epoch ends.

        Args:
            states: where to save states, every few minutes and on an interruption.
            observe: called at the end of each epoch and about every 10 s.

        Raises:
            FloatingPointError: the loss or a weight is no longer finite.
            KeyboardInterrupt: SIGINT or SIGTERM was received; the state has been saved.
        """
        if self.step == 0:
            seed = self.settings.pretrain.seed
            torch.manual_seed(derive_seed(seed, Stream.DROPOUT, distributed.rank()))
        self.updater.train_mode()
        observe_when_due = _Periodic(observe)
        with self._progress_bar() as progress, stop_after_step() as stop_requested:
            self._mark_throughput()
            while self.step < self.steps:
                epoch, first_step = divmod(self.step, self.steps_per_epoch)
                for clips, batch in self.loader.batches(self._sample(epoch), first_step):
                    self.train_step(clips, batch)
                    progress.update()
                    epoch_ended = self.step % self.steps_per_epoch == 0
                    if epoch_ended:
                        self._end_epoch(epoch + 1, progress)
                    observe_when_due(now=epoch_ended)
                    if self._is_time_to_agree(epoch_ended):
                        self._save_or_stop(states, stop_requested())
        self._check_weights()
        if states:
            self._save(states)

    def _sample(self, epoch: int) -> EpochSampler:
        """Return this process's share of the crops of an epoch."""
        p = self.settings.pretrain
        sampler = sample_epoch(len(self.features), p.batch_size, p.seed, epoch, p.crops_per_clip)
        numbered = EpochSampler(self.features.clip_numbers(sampler.clip), sampler.draw)
        return numbered.share(distributed.rank(), distributed.world_size())

    def _is_time_to_agree(self, epoch_ended: bool) -> bool:
        return distributed.world_size() == 1 or epoch_ended or self.step % AGREE_EVERY == 0

    def _save_or_stop(self, states: TrainingStates | None, stop_requested: bool) -> None:
        """Save a due state; save and raise a KeyboardInterrupt if any process is to stop."""
        stop = distributed.any_process(stop_requested)
        if states and (stop or distributed.any_process(states.due())):
            self._save(states)
        if stop:
            raise KeyboardInterrupt

    def train_step(self, clips: Int[Tensor, " B"], batch: Tensor) -> None:
        """Update the model once; log the step if it is due."""
        p = self.settings.pretrain
        factor = lr_factor(self.step, self.steps_per_epoch, p)
        terms = self.updater(clips, batch, factor, self._mask_ratio())
        if self.step % p.log_every == 0:
            lr, lr_vectors = (g["base_lr"] * factor for g in self.updater.optimizer.param_groups)
            row = {"step": float(self.step), "epoch": self.step / self.steps_per_epoch}
            values = torch.cat([terms, norms(self.model.encoder, self.model.projector)])
            self.history.log(row | {"lr": lr, "lr_vectors": lr_vectors}, values)
        self.step += 1
        if len(self.history) >= (FETCH_EVERY if self.device.type == "cuda" else 1):
            self.fetch()

    def _mask_ratio(self) -> float:
        p, encoder = self.settings.pretrain, self.settings.encoder
        if not isinstance(encoder, ViTParams):
            return 0.0
        seed = derive_seed(p.seed, Stream.MASK, self.step)  # the same in all processes
        draw = np.random.default_rng(seed).random(2)
        return masking.mask_ratio_at(encoder, self.step, self.steps, torch.from_numpy(draw))

    def _end_epoch(self, epoch: int, progress: "tqdm[Any]") -> None:
        p = self.settings.pretrain
        self.fetch()
        self._check_weights()
        invariance, redundancy = (self.updater.loss_sums / self.steps_per_epoch).tolist()
        self.updater.loss_sums.zero_()
        loss = invariance + redundancy
        row = {"epoch": float(epoch), "step": float(self.step), "loss": loss}
        row |= {"invariance": invariance, "redundancy": redundancy}
        ranks = diagnostics.ranks(self.model, self.loader, p.rank_clips, p.seed)
        self.history.epochs.append(row | ranks)
        progress.set_postfix(epoch=epoch, loss=f"{loss:.1f}")
        if progress.disable and distributed.rank() == 0:  # no terminal
            logger.info("epoch %d of %d: loss %.1f", epoch, p.epochs, loss)

    def _progress_bar(self) -> "tqdm[Any]":
        disable = True if distributed.rank() else None
        return tqdm(total=self.steps, initial=self.step, unit="step", disable=disable)

    def fetch(self) -> None:
        """Wait for the device and add the logged steps to the history.

        Raises:
            FloatingPointError: a loss is not finite; the message has the step, and what to try.
        """
        try:
            self.history.fetch()
        except FloatingPointError as error:
            raise self._not_finite(str(error)) from None
        if not self.updater.all_finite:
            raise self._not_finite(f"The loss was not finite in a step up to {self.step - 1}")
        self._mark_throughput()

    def _mark_throughput(self) -> None:
        self.throughput.mark(self.step, self.settings.pretrain.batch_size, self.loader.wait_s)

    def _check_weights(self) -> None:
        """Refuse weights that are not finite; no loss has shown the last update yet."""
        if not self.updater.weights_are_finite():
            raise self._not_finite(f"Weights are not finite after step {self.step - 1}")

    def _not_finite(self, what: str) -> FloatingPointError:
        p, optimizer = self.settings.pretrain, self.settings.encoder.optimizer
        return FloatingPointError(
            f"{what} of {self.steps}. Lower the learning rate "
            f"(encoders.{self.settings.encoder_name}.optimizer.lr, now {optimizer.lr}) or "
            f"lengthen pretrain.warmup_epochs (now {p.warmup_epochs})."
        )

    def _save(self, states: TrainingStates) -> None:
        self._check_weights()
        state = self.state_dict()  # in all processes: it gathers from each
        if distributed.rank() == 0:
            states.save(self.step, state)

    def history_table(self) -> pd.DataFrame:
        """Return the curves, one row per logged step; row 0 is the loss before any update."""
        s = self.settings
        return self.history.table(s.loss, s.projector.out_dim, s.pretrain.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, and its curves so far."""
        self.fetch()
        return {
            "step": self.step,
            "history": self.history.state_dict(),
            "throughput": self.throughput.rows,
            "updater": self.updater.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; must come before the first step."""
        self.step = state["step"]
        self.history.load_state_dict(state["history"])
        self.throughput.rows = list(state["throughput"])
        self.updater.load_state_dict(state["updater"])


class _Periodic:
    """Calls a function at most every 10 s, and for at most a fiftieth of the time."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self._due = 0.0

    def __call__(self, now: bool) -> None:
        begin = time.monotonic()
        if now or begin >= self._due:
            self.function()
            end = time.monotonic()
            self._due = end + max(OBSERVE_EVERY_S, OBSERVE_SHARE * (end - begin))
