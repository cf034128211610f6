"""One optimizer step (paper section 2): crops, two views, the loss, gradients, new weights.

It runs on the device and never waits for it. A `fast` step, the default on a GPU, passes both views
through the network at once in bfloat16, compiled and captured as one CUDA graph. Other steps are
plain PyTorch in float32 (on a GPU, convolutions in TF32, torch's default). Both define the same
training.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from pipeline.encoders.params import EncoderParams, ViTParams
from pipeline.encoders.vit import ViT
from pipeline.pretrain import distributed, masking
from pipeline.pretrain.augment import Views
from pipeline.pretrain.cuda_graph import CudaGraph
from pipeline.pretrain.fused.views import embed_views, layers
from pipeline.pretrain.loader import Loader
from pipeline.pretrain.loss import BarlowTwinsLoss, objective
from pipeline.pretrain.model import BarlowTwins, Settings, build_model
from pipeline.pretrain.optim import build_optimizer, set_lr
from pipeline.pretrain.seeds import Stream, derive_seed

MaskedViews = tuple[Tensor, Tensor, Tensor | None]  # both views, and the visible patches of view 1


class Updater:
    """The model, what updates it, and the tensors that a step reads and writes."""

    def __init__(self, settings: Settings, loader: Loader, batch_size: int, fast: bool) -> None:
        """Build the model at its initialisation; `batch_size` is that of this process."""
        p, n_mels, device = settings.pretrain, loader.features.n_mels, loader.device
        processes = distributed.world_size()
        self.settings, self.loader, self.fast = settings, loader, fast
        self.both_views_at_once = fast or processes > 1
        self.model = build_model(settings, n_mels).to(device)
        # Channels last is twice as fast, on a CPU too (torch does not type this argument).
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.target = self.model  # embeds the other view
        if settings.loss.target == "ema":
            self.target = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = build_optimizer(self.model, settings.encoder.optimizer)
        seed = derive_seed(p.seed, Stream.VIEWS, distributed.rank())
        self.generator = Generator(device).manual_seed(seed)
        self.views = Views(settings.augment, n_mels, p.crop_frames, self.generator)
        # A captured step reads and writes these tensors in place.
        self.clips = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.batch = loader.empty_batch(batch_size)
        self.loss_sums = torch.zeros(2, device=device)  # of both terms, over the steps of the epoch
        self.all_finite = torch.ones((), dtype=torch.bool, device=device)
        self.mask_ratio = 0.0
        self.draw_views: Callable[[], MaskedViews] = self._draw_views
        self.loss: Callable[..., BarlowTwinsLoss] = self._loss
        self.update: Callable[[], Tensor] = self._update
        if fast and processes == 1 and has_fixed_shapes(settings.encoder):
            self._compile()

    def _compile(self) -> None:
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        self.draw_views = torch.compile(self._draw_views)
        self.loss = torch.compile(self._loss)
        self.update = CudaGraph(self._update, self.generator)

    def __call__(
        self, clips: Int[Tensor, " B"], batch: Tensor, lr_factor: float, mask_ratio: float
    ) -> Float[Tensor, "2"]:
        """Update the weights once; return the two terms of the loss.

        Args:
            clips: numbers of the clips in the shards.
            batch: what the loader yields with these clips.
            lr_factor: multiplier of every base learning rate.
            mask_ratio: share of view 1's patches to hide (ViT).
        """
        set_lr(self.optimizer, lr_factor)
        self.clips.copy_(clips, non_blocking=True)
        self.batch.copy_(batch, non_blocking=True)
        self.mask_ratio = mask_ratio
        return self.update()

    def _update(self) -> Float[Tensor, "2"]:
        terms = self.loss(*self.draw_views())
        self.optimizer.zero_grad(set_to_none=True)
        (terms.invariance + terms.redundancy).backward()
        distributed.average_gradients(self.model.parameters())
        self.optimizer.step()
        if self.settings.loss.target == "ema":
            self._move_target()
        values = torch.stack([*terms]).detach()
        self.loss_sums.add_(values)
        self.all_finite.logical_and_(values.isfinite().all())
        return values

    @torch.no_grad()
    def _move_target(self) -> None:
        """Move the target's weights towards the model's new ones, as BYOL does.

        It has batch statistics of its own. The authors' script moves it before the step.
        """
        weight = 1 - self.settings.loss.ema_decay
        old: list[Tensor] = [*self.target.parameters()]
        new: list[Tensor] = [*self.model.parameters()]
        torch._foreach_lerp_(old, new, weight)

    def _draw_views(self) -> MaskedViews:
        view_1, view_2 = self.views(self.loader.crops(self.clips, self.batch), self.clips)
        encoder = self.model.encoder
        if not isinstance(encoder, ViT) or self.mask_ratio == 0:
            return view_1, view_2, None
        patches = encoder.position.shape[1] - 1
        visible = masking.draw_visible(len(view_1), patches, self.mask_ratio, self.generator)
        return view_1, view_2, visible

    def _loss(
        self, view_1: Tensor, view_2: Tensor, visible: Tensor | None = None
    ) -> BarlowTwinsLoss:
        """Return the objective of one pair of embeddings, or, with a target network, of two.

        BYOL sums the two, Barlow Twins averages them. Batch norms, of the predictor too, see one
        view at a time, and masks are on view 1 of the trained network alone, as with the target
        `shared`. The authors' BYOL script has both views in one pass, and masks on both.
        """
        p = self.settings.loss
        with torch.autocast(view_1.device.type, torch.bfloat16, enabled=self.fast):
            z_1, z_2 = self._embed(self.model, view_1, view_2, visible)
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
        self, model: BarlowTwins, view_1: Tensor, view_2: Tensor, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.both_views_at_once:
            return embed_views(model.encoder, model.projector, view_1, view_2, visible)
        z_1, z_2 = model(view_1, view_2, visible)
        return z_1, z_2

    def _predict(self, z: Tensor) -> Tensor:
        predictor = self.model.predictor
        if predictor is None:
            return z
        return layers(predictor, z, n_views=1) if self.both_views_at_once else predictor(z)

    def train_mode(self) -> None:
        """Put model and target into training mode: dropout, and batch norm by batch statistics."""
        self.model.train()
        self.target.train()

    def weights_are_finite(self) -> bool:
        """Return whether all weights are finite; waits for the device."""
        finite = torch.stack([w.isfinite().all() for w in self.model.parameters()])
        return all(finite.tolist())

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps depend on, gathered from all processes."""
        own = {
            "views": self.views.state_dict(),
            "generator": self.generator.get_state(),
            "default": self._default_generator()[0](),
        }
        return {
            "sums": self.loss_sums,
            "model": self.model.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "processes": distributed.gather(own),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; must come before the first step."""
        self.loss_sums.copy_(state["sums"])
        self.model.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], device=self.loader.device)
        own = state["processes"][distributed.rank()]
        self.views.load_state_dict(own["views"])
        self.generator.set_state(own["generator"])
        self._default_generator()[1](own["default"])

    def _default_generator(self) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
        """Return getter and setter of the state of torch's generator, which dropout draws from."""
        if self.loader.device.type == "cuda":
            return torch.cuda.get_rng_state, torch.cuda.set_rng_state
        return torch.get_rng_state, torch.set_rng_state


def has_fixed_shapes(encoder: EncoderParams) -> bool:
    """Return whether all steps have the same shapes, as one CUDA graph for them requires."""
    return not isinstance(encoder, ViTParams) or encoder.mask_schedule == "fixed"
