"""Pre-training by Audio Barlow Twins (paper section 2): the model, the step and the loop."""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from tqdm import tqdm

from pipeline.encoders.build import Encoder, ViT, build_encoder
from pipeline.encoders.params import EncoderParams, ViTParams
from pipeline.pretrain import distributed, masking
from pipeline.pretrain.augment import Views
from pipeline.pretrain.cuda_graph import Captured
from pipeline.pretrain.fused import embed_views, layers
from pipeline.pretrain.index import Features, Plan, epoch_plan
from pipeline.pretrain.loader import choose_feed
from pipeline.pretrain.loss import BarlowTwinsLoss, cross_correlation, objective
from pipeline.pretrain.optim import build_optimizer, lr_factor, set_lr
from pipeline.pretrain.params import AugmentParams, LossParams, PretrainParams, ProjectorParams
from pipeline.pretrain.projector import build_projector
from pipeline.pretrain.resume import Checkpoints, stop_after_step
from pipeline.pretrain.telemetry import History, Throughput, dead_dimensions, effective_rank, norms

logger = logging.getLogger(__name__)

FETCH_EVERY = 64  # logged steps; how often the host waits for a GPU
ASK_EVERY = 16  # steps; how often several processes agree whether to stop
OBSERVE_S = 10  # seconds between two looks at the curves,
OBSERVE_PAUSE = 50  # or so many times what a look takes
PROBE_CLIPS = 512  # at most so many clips for a picture of the cross-correlation
PROBE_FRAMES = 96 * PROBE_CLIPS  # and frames,
PROBE_DIMS = 256  # and so many of its dimensions

MaskedViews = tuple[
    Tensor, Tensor, Tensor | None
]  # both views, and the patches of view 1 to look at


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
    """Encoder and projector, applied to each view by itself, so that batch norm sees one view.

    The predictor, where the objective has one, maps the embedding of one view to the other's.
    """

    def __init__(
        self, encoder: Encoder, projector: nn.Sequential, predictor: nn.Sequential | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor

    def forward(
        self,
        view_1: Float[Tensor, "B F T"],
        view_2: Float[Tensor, "B F T"],
        kept: Int[Tensor, "B K"] | None = None,
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Return the embeddings z of both views; `kept` holds the patches of view 1 to look at."""
        masked = () if kept is None else (kept,)
        y_1, y_2 = self.encoder(view_1[:, None], *masked), self.encoder(view_2[:, None])
        return self.projector(y_1), self.projector(y_2)


def build_model(settings: Settings, n_mels: int) -> BarlowTwins:
    """Return the model at its initialisation, which `pretrain.seed` determines."""
    p = settings.pretrain
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        encoder = build_encoder(settings.encoder_name, settings.encoder, n_mels, p.crop_frames)
        projector = build_projector(settings.projector, encoder.embed_dim)
        if not settings.loss.predictor:
            return BarlowTwins(encoder, projector)
        dim = settings.projector.out_dim
        one_layer = ProjectorParams(hidden_layers=1, hidden_dim=dim, out_dim=dim)
        return BarlowTwins(encoder, projector, build_projector(one_layer, dim))


class Trainer:
    """The state of a run: model, optimizer, views with their bank, random generators, history.

    With `fast`, the default on a GPU, both views go through the network at once and in bfloat16,
    and the whole step is compiled and captured as one CUDA graph; without, every step is plain
    PyTorch in float32 (on a GPU, convolutions in TF32, torch's default). It is the same training.
    `where` the features are kept changes nothing.
    """

    def __init__(
        self,
        settings: Settings,
        features: Features,
        device: torch.device,
        fast: bool | None = None,
        where: str = "auto",
    ) -> None:
        p = settings.pretrain
        n_mels = features.log_mel.n_mels
        self.settings = settings
        self.features = features
        self.device = device
        processes = distributed.world_size()
        plan = self._plan(0).share(distributed.rank(), processes)
        self.steps_per_epoch, batch = plan.clip.shape
        self.feed = choose_feed(features, p.crop_frames, device, where, processes)
        self.model = build_model(settings, n_mels).to(device)
        # twice as fast, on a CPU too (torch does not type this argument)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.target = self.model  # what the embeddings of the other view are compared with
        if settings.loss.target == "ema":
            self.target = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = build_optimizer(self.model, settings.encoder.optimizer)
        self.generator = Generator(device).manual_seed(p.seed + distributed.rank())  # of the views
        self.views = Views(settings.augment, n_mels, p.crop_frames, self.generator)
        self.step = 0
        self.history = History()
        self.throughput = Throughput()
        self.clips = torch.zeros(batch, dtype=torch.long, device=device)  # of this step
        self.payload = self.feed.payload_like(batch)
        self.fast = device.type == "cuda" if fast is None else fast
        self.at_once = self.fast or processes > 1  # both views through the network
        self.mask_ratio = 0.0
        self.sums = torch.zeros(2, device=device)  # of the loss's terms, over this epoch's steps
        self.finite = torch.ones((), dtype=torch.bool, device=device)  # have all losses been
        self._observe_at = 0.0
        self.draw_views: Callable[[], MaskedViews] = self._draw_views
        self.loss: Callable[..., BarlowTwinsLoss] = self._loss
        self.update: Callable[[], Tensor] = self._update
        if self.fast and processes == 1 and self._is_static():
            self._compile()

    def _is_static(self) -> bool:
        """Tell whether all steps have the same shapes, so that one graph does them all."""
        encoder = self.settings.encoder
        return not isinstance(encoder, ViTParams) or encoder.mask_schedule == "fixed"

    def _compile(self) -> None:
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        self.draw_views = torch.compile(self._draw_views)
        self.loss = torch.compile(self._loss)
        self.update = Captured(self._update, self.generator)

    def _plan(self, epoch: int) -> Plan:
        p = self.settings.pretrain
        plan = epoch_plan(len(self.features), p.batch_size, p.seed, epoch, p.crops_per_clip)
        return Plan(self.features.numbers(plan.clip), plan.draw)

    def run(
        self,
        checkpoints: Checkpoints | None = None,
        observe: Callable[[], None] = lambda: None,
    ) -> None:
        """Train for what is left of all epochs.

        Args:
            checkpoints: where states are saved now and then and when the run is interrupted.
            observe: called at the end of each epoch, and every 10 s.

        Raises:
            FloatingPointError: the loss is no longer finite.
            KeyboardInterrupt: SIGINT or SIGTERM came; the state is saved.
        """
        p = self.settings.pretrain
        if self.step == 0:
            torch.manual_seed(p.seed + distributed.rank())  # of dropout
        self.model.train()
        self.target.train()
        steps = p.epochs * self.steps_per_epoch
        progress = tqdm(
            total=steps, initial=self.step, unit="step", disable=distributed.rank() > 0 or None
        )
        with progress, stop_after_step() as stop:
            self.throughput.mark(self.step, p.batch_size, self.feed.wait_s)
            while self.step < steps:
                self._run_epoch(progress, stop, checkpoints, observe)
        self._refuse_non_finite_weights()
        if checkpoints:
            self._save(checkpoints)

    def _run_epoch(
        self,
        progress: "tqdm[Any]",
        stop: Callable[[], bool],
        checkpoints: Checkpoints | None,
        observe: Callable[[], None],
    ) -> None:
        epoch, first = divmod(self.step, self.steps_per_epoch)
        plan = self._plan(epoch).share(distributed.rank(), distributed.world_size())
        for clips, payload in self.feed.batches(plan, first):
            self.train_step(clips, payload)
            progress.update()
            ended = self.step % self.steps_per_epoch == 0
            if ended:
                self._end_epoch(epoch + 1, progress)
            if ended or time.monotonic() >= self._observe_at:
                begin = time.monotonic()
                observe()
                now = time.monotonic()
                self._observe_at = now + max(OBSERVE_S, OBSERVE_PAUSE * (now - begin))
            asked = distributed.world_size() == 1 or ended or self.step % ASK_EVERY == 0
            if asked and distributed.any_process(stop()):
                if checkpoints:
                    self._save(checkpoints)
                raise KeyboardInterrupt
            if checkpoints and asked and distributed.any_process(checkpoints.due()):
                self._save(checkpoints)

    def _end_epoch(self, epoch: int, progress: "tqdm[Any]") -> None:
        p = self.settings.pretrain
        self.fetch()
        self._refuse_non_finite_weights()
        invariance, redundancy = (self.sums / self.steps_per_epoch).tolist()
        self.sums.zero_()
        loss = invariance + redundancy
        row = {"epoch": float(epoch), "step": float(self.step), "loss": loss}
        row |= {"invariance": invariance, "redundancy": redundancy}
        self.history.epochs.append(row | self.measure_ranks())
        progress.set_postfix(epoch=epoch, loss=f"{loss:.1f}")
        if progress.disable and distributed.rank() == 0:  # no terminal
            logger.info("epoch %d of %d: loss %.1f", epoch, p.epochs, loss)

    def train_step(self, clips: Int[Tensor, " B"], payload: Tensor) -> None:
        """Update the model once on crops of the given clips (see `pipeline.pretrain.loader`)."""
        p = self.settings.pretrain
        factor = lr_factor(self.step, self.steps_per_epoch, p)
        set_lr(self.optimizer, factor)
        self.clips.copy_(clips, non_blocking=True)
        self.payload.copy_(payload, non_blocking=True)
        self.mask_ratio = self._mask_ratio()
        terms = self.update()
        if self.step % p.log_every == 0:
            lr, lr_vectors = (g["base_lr"] * factor for g in self.optimizer.param_groups)
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
        epoch = self.step // self.steps_per_epoch
        draw = np.random.default_rng([p.seed, self.step]).random(2)  # the same in all processes
        return masking.mask_ratio_at(encoder, epoch, p.epochs, torch.from_numpy(draw))

    def fetch(self) -> None:
        """Wait for the device and take over what was logged.

        Raises:
            FloatingPointError: the loss is not finite; says since when, and what to try.
        """
        p = self.settings.pretrain
        try:
            self.history.fetch()
        except FloatingPointError as error:
            raise self._not_finite(str(error)) from None
        if not self.finite:
            raise self._not_finite(f"The loss was not finite in a step up to {self.step - 1}")
        self.throughput.mark(self.step, p.batch_size, self.feed.wait_s)

    def _refuse_non_finite_weights(self) -> None:
        """Look at the weights, whose last update no loss has shown yet.

        Raises:
            FloatingPointError: a weight is not finite.
        """
        if not all(torch.stack([w.isfinite().all() for w in self.model.parameters()]).tolist()):
            raise self._not_finite(f"Weights are not finite after step {self.step - 1}")

    def _not_finite(self, what: str) -> FloatingPointError:
        p, optimizer = self.settings.pretrain, self.settings.encoder.optimizer
        return FloatingPointError(
            f"{what} of {p.epochs * self.steps_per_epoch}. Lower the learning rate "
            f"(encoders.{self.settings.encoder_name}.optimizer.lr, now {optimizer.lr}) or "
            f"lengthen pretrain.warmup_epochs (now {p.warmup_epochs})."
        )

    def _update(self) -> Float[Tensor, "2"]:
        """Do all of a step that happens on the device; return the two terms of the loss."""
        terms = self.loss(*self.draw_views())
        self.optimizer.zero_grad(set_to_none=True)
        (terms.invariance + terms.redundancy).backward()
        distributed.average_gradients(self.model.parameters())
        self.optimizer.step()
        if self.settings.loss.target == "ema":
            self._move_target()
        values = torch.stack([*terms]).detach()
        self.sums.add_(values)
        self.finite.logical_and_(values.isfinite().all())
        return values

    @torch.no_grad()
    def _move_target(self) -> None:
        """Let the target's weights follow the model's; its batch statistics are its own."""
        weight = 1 - self.settings.loss.ema_decay
        old: list[Tensor] = [*self.target.parameters()]
        new: list[Tensor] = [*self.model.parameters()]
        torch._foreach_lerp_(old, new, weight)

    def _draw_views(self) -> MaskedViews:
        view_1, view_2 = self.views(self.feed.crops(self.clips, self.payload), self.clips)
        encoder = self.model.encoder
        if not isinstance(encoder, ViT) or self.mask_ratio == 0:
            return view_1, view_2, None
        patches = encoder.position.shape[1] - 1
        kept = masking.draw_kept(len(view_1), patches, self.mask_ratio, self.generator)
        return view_1, view_2, kept

    def _loss(self, view_1: Tensor, view_2: Tensor, kept: Tensor | None = None) -> BarlowTwinsLoss:
        """Return the objective: of one pair of embeddings, or of two with a target network.

        Of two, BYOL's is the sum, that of Barlow Twins the mean.
        """
        p = self.settings.loss
        with torch.autocast(view_1.device.type, torch.bfloat16, enabled=self.fast):
            z_1, z_2 = self._embed(self.model, view_1, view_2, kept)
            pairs = [(self._predict(z_1), z_2)]
            if p.target == "stop_gradient":
                pairs = [(pairs[0][0], z_2.detach())]
            elif p.target == "ema":
                with torch.no_grad():
                    target_1, target_2 = self._embed(self.target, view_1, view_2)
                pairs = [(pairs[0][0], target_2), (self._predict(z_2), target_1)]
        terms = [objective(*pair, p) for pair in pairs]
        combine = torch.sum if p.objective == "byol" else torch.mean
        return BarlowTwinsLoss(*(combine(torch.stack(v)) for v in zip(*terms, strict=True)))

    def _embed(
        self, model: BarlowTwins, view_1: Tensor, view_2: Tensor, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.at_once:
            return embed_views(model.encoder, model.projector, view_1, view_2, kept)
        z_1, z_2 = model(view_1, view_2, kept)
        return z_1, z_2

    def _predict(self, z: Tensor) -> Tensor:
        predictor = self.model.predictor
        if predictor is None:
            return z
        return layers(predictor, z, n_views=1) if self.at_once else predictor(z)

    def history_table(self) -> pd.DataFrame:
        """Return the curves, one row per logged step; row 0 is before any update."""
        s = self.settings
        return self.history.table(s.loss, s.projector.out_dim, s.pretrain.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, and its curves so far."""
        self.fetch()
        cuda = self.device.type == "cuda"
        own = {
            "views": self.views.state_dict(),
            "generator": self.generator.get_state(),
            "default": torch.cuda.get_rng_state() if cuda else torch.get_rng_state(),
        }
        return {
            "step": self.step,
            "sums": self.sums,
            "model": self.model.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history.state_dict(),
            "throughput": self.throughput.rows,
            "processes": distributed.gather(own),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; must come before the first step."""
        self.step = state["step"]
        self.sums.copy_(state["sums"])
        self.model.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], device=self.device)
        self.history.load_state_dict(state["history"])
        self.throughput.rows = list(state["throughput"])
        own = state["processes"][distributed.rank()]
        self.views.load_state_dict(own["views"])
        self.generator.set_state(own["generator"])
        set_default = (
            torch.cuda.set_rng_state if self.device.type == "cuda" else torch.set_rng_state
        )
        set_default(own["default"])

    def _save(self, checkpoints: Checkpoints) -> None:
        self._refuse_non_finite_weights()
        state = self.state_dict()  # of all processes
        if distributed.rank() == 0:
            checkpoints.save(self.step, state)

    def _crops(self, clips: Int[Tensor, " N"], seed: int) -> tuple[Tensor, Tensor]:
        """Return clips, as indices on the device, and a crop of each."""
        draw = torch.rand(1, len(clips), generator=Generator().manual_seed(seed))
        ((index, payload),) = self.feed.batches(Plan(clip=clips[None], draw=draw))
        index, payload = index.to(self.device), payload.to(self.device)
        return index, self.feed.crops(index, payload)

    @torch.no_grad()
    def probe_correlation(self) -> Float[Tensor, "d d"]:
        """Return C of the first clips and dimensions, as the loss sees it, leaving no trace."""
        p = self.settings.pretrain
        generator = Generator(self.device).manual_seed(p.seed)
        count = min(PROBE_CLIPS, len(self.features), PROBE_FRAMES // p.crop_frames)
        index = torch.arange(max(2, count)) % len(self.features)
        clips, crops = self._crops(self.features.numbers(index), p.seed)
        views = Views(self.settings.augment, self.features.log_mel.n_mels, p.crop_frames, generator)
        with torch.random.fork_rng():
            torch.manual_seed(p.seed)
            model = copy.deepcopy(self.model).train()
            z_1, z_2 = model(*views(crops, clips))
        return cross_correlation(z_1[:, :PROBE_DIMS], z_2[:, :PROBE_DIMS])

    @torch.no_grad()
    def measure_ranks(self) -> dict[str, float]:
        """Return effective rank and dead dimensions of y and z on crops from all over the data."""
        clips = self.settings.pretrain.rank_clips
        if clips == 0:
            return {}
        encoder, projector = self.model.encoder.eval(), self.model.projector.eval()
        _, crops = self._crops(self._spread(clips), self.settings.pretrain.seed)
        y = torch.cat([encoder(part[:, None]) for part in crops.split(64)])
        z = projector(y)
        self.model.train()
        return {
            "rank_y": effective_rank(y),
            "rank_z": effective_rank(z),
            "dead_y": float(dead_dimensions(y)),
            "dead_z": float(dead_dimensions(z)),
        }

    def example_views(self, clips: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return clips from all over the data, a crop of each and its two views."""
        index, crops = self._crops(self._spread(clips), self.settings.pretrain.seed)
        return (index, crops, *self.views(crops, index))

    def _spread(self, clips: int) -> Int[Tensor, " n"]:
        total = len(self.features)
        return self.features.numbers(torch.linspace(0, total - 1, min(clips, total)).long())
