"""View masking: the encoder sees a random part of view 1's patches (paper section C.3)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from pipeline.encoders.params import MIN_RANDOM_MASK, ViTParams, visible_patches


def mask_ratio_at(params: ViTParams, step: int, steps: int, draw: Float[Tensor, "2"]) -> float:
    """Return the share of patches to hide in a step, from 0 to `steps` - 1.

    `draw` holds two uniform numbers from [0, 1), on the CPU, new for each step. The schedule
    `random` uses them: whether to mask, and how much.
    """
    if params.mask_schedule == "fixed" or params.mask_ratio == 0:
        return params.mask_ratio
    if params.mask_schedule == "random":
        whether, share = draw.tolist()
        ratio = MIN_RANDOM_MASK + (params.mask_ratio - MIN_RANDOM_MASK) * share
        return ratio if whether < 0.5 else 0.0
    warmup = params.mask_warmup * steps
    progress = max(0.0, (step - warmup) / (steps - warmup))
    return params.mask_ratio * math.sin(math.pi / 2 * progress)


def draw_visible(
    batch: int, patches: int, ratio: float, generator: Generator
) -> Int[Tensor, "B K"]:
    """Return for each item the patches that stay visible, drawn uniformly, in ascending order."""
    order = torch.rand(batch, patches, generator=generator, device=generator.device).argsort(dim=1)
    return order[:, : visible_patches(patches, ratio)].sort(dim=1).values
