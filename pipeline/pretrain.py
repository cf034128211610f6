"""Pre-training by Audio Barlow Twins (paper section 2): the model, the step and the loop."""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from tqdm import trange

from pipeline.augment import Views
from pipeline.capture import Captured
from pipeline.dataset import Features, epoch_batches
from pipeline.encoders import Encoder, build_encoder
from pipeline.fast import embed_views
from pipeline.loss import BarlowTwinsLoss, barlow_twins_loss, cross_correlation, noise_floor
from pipeline.optim import build_optimizer, lr_factor, set_lr
from pipeline.params.method import (
    AugmentParams,
    EncoderParams,
    LossParams,
    PretrainParams,
    ProjectorParams,
)
from pipeline.projector import build_projector

logger = logging.getLogger(__name__)

FETCH_EVERY = 256  # logged steps; how often the host waits for the device
PROBE_CLIPS = 512  # at most so many clips for a picture of the cross-correlation
PROBE_DIMS = 256  # and so many of its dimensions


@dataclass(frozen=True)
class Settings:
    """Every section of params.yaml that pre-training reads."""

    encoder_name: str
    encoder: EncoderParams
    augment: AugmentParams
    projector: ProjectorParams
    loss: LossParams
    pretrain: PretrainParams


class BarlowTwins(nn.Module):
    """Encoder and projector, applied to each view by itself, so that batch norm sees one view."""

    def __init__(self, encoder: Encoder, projector: nn.Sequential) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(
        self, view_1: Float[Tensor, "B F T"], view_2: Float[Tensor, "B F T"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Return the embeddings z of both views."""
        z_1, z_2 = (self.projector(self.encoder(view[:, None])) for view in (view_1, view_2))
        return z_1, z_2


def build_model(settings: Settings, n_mels: int) -> BarlowTwins:
    """Return the model at its initialisation, which `pretrain.seed` determines."""
    p = settings.pretrain
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        encoder = build_encoder(settings.encoder_name, settings.encoder, n_mels, p.crop_frames)
        return BarlowTwins(encoder, build_projector(settings.projector, encoder.embed_dim))


class Trainer:
    """The state of a run: model, optimizer, views with their bank, random generators, history.

    With `fast`, the default on a GPU, both views go through the network at once and in bfloat16,
    and the whole step is compiled and captured as one CUDA graph; without, every step is plain
    PyTorch in float32. It is the same training.
    """

    def __init__(
        self,
        settings: Settings,
        features: Features,
        device: torch.device,
        fast: bool | None = None,
    ) -> None:
        p = settings.pretrain
        n_mels = features.log_mel.n_mels
        self.settings = settings
        self.features = features.to(device)
        self.model = build_model(settings, n_mels).to(device)
        # twice as fast, on a CPU too (torch does not type this argument)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.model, settings.encoder.optimizer)
        self.generator = Generator(device).manual_seed(p.seed)  # order, crops and views
        self.views = Views(settings.augment, n_mels, p.crop_frames, self.generator)
        self.steps_per_epoch = len(epoch_batches(len(features), p.batch_size, Generator()))
        self.step = 0
        self.history: list[tuple[int, float, BarlowTwinsLoss]] = []
        self._unfetched: list[tuple[int, float, Tensor]] = []
        self.clips = torch.zeros(p.batch_size, dtype=torch.long, device=device)  # of this step
        self.fast = device.type == "cuda" if fast is None else fast
        self.draw_views: Callable[[], tuple[Tensor, Tensor]] = self._draw_views
        self.loss: Callable[[Tensor, Tensor], BarlowTwinsLoss] = self._loss
        self.update: Callable[[], Tensor] = self._update
        if self.fast:
            torch.backends.cudnn.benchmark = True
            self.draw_views = torch.compile(self._draw_views)
            self.loss = torch.compile(self._loss)
            self.update = Captured(self._update, self.generator)

    def run(self) -> None:
        """Train for all epochs.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        p = self.settings.pretrain
        torch.manual_seed(p.seed)  # of dropout
        self.model.train()
        progress = trange(p.epochs * self.steps_per_epoch, unit="step", disable=None)
        for epoch in range(p.epochs):
            for clips in epoch_batches(len(self.features), p.batch_size, self.generator):
                self.train_step(clips)
                progress.update()
            self._fetch()
            loss = self._refuse_non_finite(epoch)
            progress.set_postfix(epoch=epoch + 1, loss=f"{loss:.1f}")
            if progress.disable:  # no terminal
                logger.info("epoch %d of %d: loss %.1f", epoch + 1, p.epochs, loss)
        progress.close()

    def train_step(self, clips: Int[Tensor, " B"]) -> None:
        """Update the model once on crops of the given clips."""
        p = self.settings.pretrain
        factor = lr_factor(self.step, self.steps_per_epoch, p)
        set_lr(self.optimizer, factor)
        self.clips.copy_(clips)
        terms = self.update()
        if self.step % p.log_every == 0:
            self._unfetched.append((self.step, factor, terms.clone()))
            if len(self._unfetched) == FETCH_EVERY:
                self._fetch()
        self.step += 1

    def _update(self) -> Float[Tensor, "2"]:
        """Do all of a step that happens on the device; return the two terms of the loss."""
        terms = self.loss(*self.draw_views())
        self.optimizer.zero_grad(set_to_none=True)
        (terms.invariance + terms.redundancy).backward()
        self.optimizer.step()
        return torch.stack([*terms]).detach()

    def _draw_views(self) -> tuple[Float[Tensor, "B F T"], Float[Tensor, "B F T"]]:
        crop_frames = self.settings.pretrain.crop_frames
        crops = self.features.crop(self.clips, crop_frames, self.generator)
        return self.views(crops, self.clips)

    def _loss(self, view_1: Tensor, view_2: Tensor) -> BarlowTwinsLoss:
        if self.fast:
            with torch.autocast(view_1.device.type, torch.bfloat16):
                z = embed_views(self.model.encoder, self.model.projector, view_1, view_2)
        else:
            z = self.model(view_1, view_2)
        return barlow_twins_loss(cross_correlation(*z), self.settings.loss)

    def _fetch(self) -> None:
        """Move the logged terms to the host."""
        if self._unfetched:
            rows = torch.stack([terms for _, _, terms in self._unfetched]).cpu()
            for (step, factor, _), row in zip(self._unfetched, rows, strict=True):
                self.history.append((step, factor, BarlowTwinsLoss(*row)))
            self._unfetched.clear()

    def _refuse_non_finite(self, epoch: int) -> float:
        latest = self.history[-self.steps_per_epoch :]
        losses = {step: float(sum(terms)) for step, _, terms in latest}
        loss = list(losses.values())[-1]
        if not math.isfinite(loss):
            step = next(step for step, value in losses.items() if not math.isfinite(value))
            raise FloatingPointError(
                f"The loss is {loss} since step {step} (epoch {epoch + 1}). Lower the learning "
                f"rate (encoders.{self.settings.encoder_name}.optimizer.lr, now "
                f"{self.settings.encoder.optimizer.lr}) or lengthen pretrain.warmup_epochs."
            )
        return loss

    def history_table(self) -> pd.DataFrame:
        """Return the curves, one row per logged step; row 0 is before any update."""
        self._fetch()
        s = self.settings
        floor = noise_floor(s.loss, s.projector.out_dim, s.pretrain.batch_size)
        terms = torch.tensor([[float(t) for t in terms] for _, _, terms in self.history])
        steps = [step for step, _, _ in self.history]
        return pd.DataFrame(
            {
                "step": steps,
                "epoch": [step / self.steps_per_epoch for step in steps],
                "loss": terms.sum(dim=1).numpy(),
                "invariance": terms[:, 0].numpy(),
                "redundancy": terms[:, 1].numpy(),
                "noise_floor": floor,
                "lr": [s.encoder.optimizer.lr * factor for _, factor, _ in self.history],
            }
        )

    @torch.no_grad()
    def probe_correlation(self) -> Float[Tensor, "d d"]:
        """Return C of the first clips and dimensions, as the loss sees it, leaving no trace."""
        p = self.settings.pretrain
        generator = Generator(self.generator.device).manual_seed(p.seed)
        clips = torch.arange(min(PROBE_CLIPS, len(self.features)), device=generator.device)
        views = Views(self.settings.augment, self.features.log_mel.n_mels, p.crop_frames, generator)
        with torch.random.fork_rng():
            torch.manual_seed(p.seed)
            model = copy.deepcopy(self.model).train()
            crops = self.features.crop(clips, p.crop_frames, generator)
            z_1, z_2 = model(*views(crops, clips))
        return cross_correlation(z_1[:, :PROBE_DIMS], z_2[:, :PROBE_DIMS])

    def example_views(self, clips: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return clips from all over the data, a crop of each and its two views."""
        p = self.settings.pretrain
        total, device = len(self.features), self.generator.device
        index = torch.linspace(0, total - 1, min(clips, total), device=device).long()
        crops = self.features.crop(index, p.crop_frames, self.generator)
        return (index, crops, *self.views(crops, index))
