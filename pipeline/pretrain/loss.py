"""The objective of Barlow Twins (paper equations 1 and 2), and that of BYOL, in float32."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipeline.pretrain.distributed import all_mean, global_moments
from pipeline.pretrain.params import LossParams

EPSILON = 1e-5  # added to the variance of each dimension, as batch normalization does


class BarlowTwinsLoss(NamedTuple):
    """The two weighted terms of equation 1, whose sum is the objective. BYOL has only the first."""

    invariance: Float[Tensor, ""]  # alpha * sum_i (C_ii - 1)^2
    redundancy: Float[Tensor, ""]  # lambda * sum_{i != j} C_ij^2, or (C_ij + 1)^2 with hsic


def cross_correlation(
    z: Float[Tensor, "B D"], z_prime: Float[Tensor, "B D"]
) -> Float[Tensor, "D D"]:
    """Return the cross-correlation matrix C of two batches of embeddings (equation 2).

    Each dimension is standardized over the batch; C_ij is the mean over the batch of z_i z'_j. The
    paper writes a sum; only the mean has the range [-1, 1] that equation 1 needs. With several
    processes, the batch is that of all.

    Raises:
        ValueError: fewer than two items, which have no variance.
    """
    if len(z) < 2:
        raise ValueError(f"Cross-correlation needs a batch of at least 2, got {len(z)}.")

    def standardize(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        mean, variance = global_moments(mean, variance)
        return (x - mean) * torch.rsqrt(variance + EPSILON)

    with torch.autocast(z.device.type, enabled=False):
        return all_mean(standardize(z.float()).T @ standardize(z_prime.float()) / len(z))


def barlow_twins_loss(c: Float[Tensor, "D D"], params: LossParams) -> BarlowTwinsLoss:
    """Return the weighted invariance and redundancy terms of equation 1.

    With `hsic`, the target off the diagonal is -1 instead of 0 (Tsai et al. 2021; report 4.3).
    """
    diagonal = c.diagonal()
    distance = c + 1 if params.hsic else c
    off_diagonal = distance.square().sum() - distance.diagonal().square().sum()
    return BarlowTwinsLoss(
        invariance=params.alpha * (diagonal - 1).square().sum(),
        redundancy=params.lambda_ * off_diagonal,
    )


def byol_loss(z: Float[Tensor, "B D"], z_prime: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Return BYOL's loss (Grill et al. 2020, equation 2): the mean over the batch of 2 - 2 cos.

    `z` is the prediction from one view, `z_prime` the target network's embedding of the other.
    """
    with torch.autocast(z.device.type, enabled=False):
        cosine = functional.cosine_similarity(z.float(), z_prime.float())
        return all_mean((2 - 2 * cosine).mean())


def objective(
    z: Float[Tensor, "B D"], z_prime: Float[Tensor, "B D"], params: LossParams
) -> BarlowTwinsLoss:
    """Return the terms of `loss.objective` for one pair of embeddings."""
    if params.objective == "byol":
        loss = byol_loss(z, z_prime)
        return BarlowTwinsLoss(invariance=loss, redundancy=torch.zeros_like(loss))
    return barlow_twins_loss(cross_correlation(z, z_prime), params)


def noise_floor(params: LossParams, dim: int, batch_size: int) -> float:
    """Return the redundancy term of independent embeddings: lambda D (D - 1) / B.

    With `hsic` it is lambda D (D - 1) (1 + 1 / B). Only losses of equal dimension and batch size
    are comparable. BYOL has no such term.
    """
    if params.objective == "byol":
        return 0.0
    square = 1 / batch_size + (1 if params.hsic else 0)  # mean of C_ij^2, or of (C_ij + 1)^2
    return params.lambda_ * dim * (dim - 1) * square
