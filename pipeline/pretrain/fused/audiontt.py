"""AudioNTT without its two largest tensors.

First block. Its input has one channel, so its convolution is linear in the 9 values of a 3x3 patch:
batch statistics follow exactly from the patches' mean and covariance, batch norm folds into the
convolution's weights, and convolution, ReLU and pooling are one kernel that reads the spectrogram
and writes the pooled channels.

Second block. Batch norm scales all values of a channel alike, so the largest of 2x2 values stays
the largest (with a negative scale, the smallest becomes it): pooling comes first, in the kernel
that computes the statistics, and normalization and ReLU act on a quarter of the values.

Batch norm cancels the convolutions' biases. They are left out and get no gradient; the exact one is
zero. On a GPU the three operations below are Triton kernels
(`pipeline.pretrain.fused.audiontt_kernels`); the expressions here define them.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipeline.encoders.audiontt import AudioNTT
from pipeline.pretrain.fused.norm import VIEWS, fold

if torch.cuda.is_available():
    from pipeline.pretrain.fused import audiontt_kernels as kernels

TAPS = 9  # of a 3x3 convolution with one input channel
ROWS = 16  # of a folded kernel: the taps, the shift, zeros
BLOCK = 64  # divides a view's pooled positions, so that no kernel has to mask them


def suits(encoder: AudioNTT, x: Float[Tensor, "V F T"]) -> bool:
    """Return whether the kernels cover these sizes."""
    second: Any = encoder.conv[1]
    channels, (items, mels, frames) = second[0].out_channels, x.shape
    pooled = items // VIEWS * (mels // 4) * (frames // 4)
    divisible = mels % 4 == 0 and frames % 4 == 0 and pooled % BLOCK == 0
    return divisible and channels in (16, 32, 64, 128) and VIEWS * pooled * 4 * channels < 2**31


def encode(encoder: AudioNTT, x: Float[Tensor, "V F T"]) -> Float[Tensor, "V D"]:
    """Return the representations of concatenated views, as `encoder` in training mode would."""
    first, second = encoder.conv.children()
    h = _second_block(second, _first_block(first, x))
    return encoder.encode(h.permute(0, 3, 1, 2))


def _first_block(block: Any, x: Float[Tensor, "V F T"]) -> Float[Tensor, "V F2 T2 C"]:
    conv, norm = block[0], block[1]
    taps = conv.weight.flatten(1)  # [C, 9]
    patch_mean, patch_covariance = patch_statistics(x)
    mean = (patch_mean[:, None] * taps).sum(2)  # [views, C]
    variance = (taps[:, :, None] * taps[:, None] * patch_covariance[:, None]).sum((2, 3))
    scale, shift = fold(norm, mean, variance, x.numel() // VIEWS, conv.bias)
    zeros = scale.new_zeros(VIEWS, ROWS - TAPS - 1, len(taps))
    kernel = torch.cat([taps.T * scale[:, None], shift[:, None], zeros], dim=1)
    return conv_relu_pool(x, kernel)


def _second_block(block: Any, h: Float[Tensor, "V F2 T2 C"]) -> Float[Tensor, "V F4 T4 C"]:
    conv, norm = block[0], block[1]
    z = functional.conv2d(h.permute(0, 3, 1, 2), conv.weight, padding=1).permute(0, 2, 3, 1)
    top, mean, variance = pool_with_statistics(z, norm.weight)
    scale, shift = fold(norm, mean, variance, z[..., 0].numel() // VIEWS, conv.bias)
    views = top.unflatten(0, (VIEWS, -1))
    h = (views * scale[:, None, None, None] + shift[:, None, None, None]).relu()
    return h.flatten(0, 1).to(z.dtype)


@torch.no_grad()
def patch_statistics(
    x: Float[Tensor, "V F T"],
) -> tuple[Float[Tensor, "views 9"], Float[Tensor, "views 9 9"]]:
    """Return mean and covariance of the 3x3 patches around all positions of each view."""
    if x.is_cuda:
        gram = kernels.patch_gram(x)[:, : TAPS + 1, : TAPS + 1]
    else:
        patches = functional.unfold(x[:, None], 3, padding=1).unflatten(0, (VIEWS, -1))
        patches = torch.cat([patches, torch.ones_like(patches[:, :, :1])], dim=2).double()
        gram = torch.einsum("vbip,vbjp->vij", patches, patches)
    gram = gram / gram[:, TAPS:, TAPS:]  # by the number of positions
    mean = gram[:, TAPS, :TAPS]
    covariance = gram[:, :TAPS, :TAPS] - mean[:, :, None] * mean[:, None]
    return mean.to(x.dtype), covariance.to(x.dtype)


def conv_relu_pool(
    x: Float[Tensor, "V F T"], kernel: Float[Tensor, "views 16 C"]
) -> Float[Tensor, "V F2 T2 C"]:
    """Return max_pool(relu(conv(x))), 3x3 and 2x2, for each view with its own kernel and shift.

    Only the kernel has a gradient.
    """
    if x.is_cuda:
        return kernels.conv_relu_pool(x, kernel, _compute_dtype(x))
    pooled = []
    for view, weight in zip(x[:, None].chunk(VIEWS), kernel, strict=True):
        taps = weight[:TAPS].T.reshape(-1, 1, 3, 3)
        h = functional.conv2d(view, taps, weight[TAPS], padding=1).relu()
        pooled.append(functional.max_pool2d(h, 2))
    return torch.cat(pooled).permute(0, 2, 3, 1)


def pool_with_statistics(
    x: Float[Tensor, "V F T C"], sign: Float[Tensor, " C"]
) -> tuple[Float[Tensor, "V F2 T2 C"], Float[Tensor, "views C"], Float[Tensor, "views C"]]:
    """Return the extremes of 2x2 positions, and mean and variance of each view.

    The extreme is the maximum, or the minimum in channels where `sign` is negative.
    """
    if x.is_cuda:
        return kernels.pool_with_statistics(x, sign.detach())
    up = torch.where(sign < 0, -1, 1).to(x.dtype)
    top = functional.max_pool2d((x * up).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1) * up
    views = x.unflatten(0, (VIEWS, -1)).to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(views, (1, 2, 3), correction=0)
    return top, mean, variance


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
