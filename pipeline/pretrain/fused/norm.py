"""Batch normalization of concatenated views, each by itself."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.pretrain.distributed import global_moments, world_size

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d

VIEWS = 2


def batch_norm(
    norm: BatchNorm, x: Float[Tensor, "V C *rest"], n_views: int = VIEWS
) -> Float[Tensor, "V C *rest"]:
    """Return each view normalized as by `norm` in training mode, in float32 or better."""
    views = x.unflatten(0, (n_views, -1)).to(torch.promote_types(x.dtype, torch.float32))
    over = [1, *range(3, views.ndim)]
    variance, mean = torch.var_mean(views, over, correction=0)
    scale, shift = fold(norm, mean, variance, views[0, :, 0].numel())
    channels = (n_views, 1, -1, *[1] * (x.ndim - 2))
    return (views * scale.view(channels) + shift.view(channels)).flatten(0, 1).to(x.dtype)


def fold(
    norm: BatchNorm,
    mean: Float[Tensor, "views C"],
    variance: Float[Tensor, "views C"],
    count: int,
    bias: Float[Tensor, " C"] | None = None,
) -> tuple[Float[Tensor, "views C"], Float[Tensor, "views C"]]:
    """Return the scale and shift that normalize each view, and update the running statistics.

    `variance` is the population variance of `count` values in this process; the statistics returned
    and tracked are those of all processes. `bias` was left out before the normalization, which
    cancels it; only the running mean includes it.
    """
    mean, variance = global_moments(mean, variance)
    count *= world_size()
    _track(norm, mean if bias is None else mean + bias, variance, count)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


@torch.no_grad()
def _track(norm: BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Update the running statistics as a forward pass for each view in order would."""
    momentum = norm.momentum or 0.0
    for view in range(len(mean)):
        norm.running_mean.lerp_(mean[view], momentum)  # type: ignore[union-attr]
        unbiased = variance[view] * (count / (count - 1))
        norm.running_var.lerp_(unbiased, momentum)  # type: ignore[union-attr]
    norm.num_batches_tracked.add_(len(mean))  # type: ignore[union-attr]
