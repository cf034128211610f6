"""Triton kernels of `pipeline.pretrain.fused.audiontt`, which defines what they compute.

Layouts: x [V, F, T], pooled [V, F/2, T/2, C], both contiguous; a view is one half of the items. A
program covers all channels of some pooled places of one view; a view has a multiple of 64 of them
(`audiontt.suits`), so that only the edges of a spectrogram need masks. Sums take two steps of fixed
order, so results are reproducible to the bit.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

VIEWS = 2
ROWS = 16  # of a kernel: 9 taps, the shift, zeros; the fewest that tl.dot takes
BLOCK, GRAD_BLOCK = 64, 16  # places at a time
PROGRAMS = 528  # per view, of a kernel that sums over all places: 4 per multiprocessor
POOL_BLOCK, POOL_STEPS = 16, 4  # places per step, and steps, of the pooling kernel
GRAM_BLOCK = 2048  # positions per program


@triton.jit
@no_type_check
def _tap(x, tap, item, row, column, height, width, inside):
    """Return each position's value at a tap of its 3x3 patch; zero outside the spectrogram."""
    r, c = row + tap // 3 - 1, column + tap % 3 - 1
    inside = inside & (r >= 0) & (r < height) & (c >= 0) & (c < width)
    return tl.load(x + (item * height + r) * width + c, mask=inside, other=0.0)


@triton.jit
@no_type_check
def _corner_patch(x, place, corner, height, width, dtype):
    """Return [places, 16]: taps around one of the 4 positions pooled into each place."""
    pooled_width = width // 2
    pooled = height // 2 * pooled_width
    row = place % pooled // pooled_width * 2 + corner // 2
    column = place % pooled_width * 2 + corner % 2
    item, tap = (place // pooled)[:, None], tl.arange(0, 16)[None, :]
    return _tap(x, tap, item, row[:, None], column[:, None], height, width, tap < 9).to(dtype)


@triton.jit
@no_type_check
def _load_kernel(kernel, view, C: tl.constexpr, dtype):
    """Return taps [16, C], whose rows from 9 on meet zeros, and shift [1, C] of a view's kernel."""
    row, channel = tl.arange(0, 16)[:, None], tl.arange(0, C)[None, :]
    taps = tl.load(kernel + (view * 16 + row) * C + channel)
    return taps.to(dtype), tl.load(kernel + (view * 16 + 9) * C + channel)


@triton.jit
@no_type_check
def _gram_kernel(x, out, height, width, positions, BLOCK: tl.constexpr):
    view, program = tl.program_id(1), tl.program_id(0)
    index = program * BLOCK + tl.arange(0, BLOCK)
    inside = index < positions
    place = view * positions + index
    column, row = place % width, place // width % height
    item = place // (width * height)
    out += (view * tl.num_programs(0) + program) * 256
    for i in tl.static_range(10):
        a = inside.to(tl.float32)
        if i < 9:
            a = _tap(x, i, item, row, column, height, width, inside)
        for j in tl.static_range(i + 1):
            b = inside.to(tl.float32)
            if j < 9:
                b = _tap(x, j, item, row, column, height, width, inside)
            tl.store(out + i * 16 + j, tl.sum(a * b))


@triton.jit
@no_type_check
def _conv_kernel(x, kernel, out, height, width, places, BLOCK: tl.constexpr, C: tl.constexpr):
    view = tl.program_id(1)
    dtype = out.dtype.element_ty
    taps, shift = _load_kernel(kernel, view, C, dtype)
    place = view * places + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    best = tl.full([BLOCK, C], float("-inf"), tl.float32)
    for corner in tl.static_range(4):
        patch = _corner_patch(x, place, corner, height, width, dtype)
        best = tl.maximum(best, tl.dot(patch, taps, input_precision="tf32x3"))
    where = place[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(out + where, tl.maximum(best + shift, 0.0).to(dtype))


@triton.jit
@no_type_check
def _conv_grad_kernel(
    x,
    kernel,
    grad,
    out,
    height,
    width,
    places,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    C: tl.constexpr,
):
    view, program = tl.program_id(1), tl.program_id(0)
    dtype = grad.dtype.element_ty
    taps, shift = _load_kernel(kernel, view, C, dtype)
    channel = tl.arange(0, C)[None, :]
    taps_grad = tl.zeros([16, C], tl.float32)
    shift_grad = tl.zeros([BLOCK, C], tl.float32)
    for step in range(STEPS):
        index = (program * STEPS + step) * BLOCK
        if index < places:
            place = view * places + index + tl.arange(0, BLOCK)
            g = tl.load(grad + place[:, None] * C + channel)
            best = tl.full([BLOCK, C], float("-inf"), tl.float32)
            at = tl.zeros([BLOCK, C], tl.int32)
            for corner in tl.static_range(4):
                patch = _corner_patch(x, place, corner, height, width, dtype)
                value = tl.dot(patch, taps, input_precision="tf32x3")
                at = tl.where(
                    value > best, corner, at
                )  # of equal values, the first takes the gradient
                best = tl.maximum(best, value)
            g = tl.where(best + shift > 0, g, 0.0)
            shift_grad += g.to(tl.float32)
            for corner in tl.static_range(4):
                patch = _corner_patch(x, place, corner, height, width, dtype)
                part = tl.where(at == corner, g, 0.0).to(dtype)
                taps_grad += tl.dot(tl.trans(patch), part, input_precision="tf32x3")
    row = tl.arange(0, 16)[:, None]
    total = tl.where(row == 9, tl.sum(shift_grad, 0)[None, :], taps_grad)
    tl.store(out + ((view * tl.num_programs(0) + program) * 16 + row) * C + channel, total)


@triton.jit
@no_type_check
def _load_corner(x, place, corner, width, channel, C: tl.constexpr):
    """Return values at one of the 4 positions pooled into each place, and their offsets."""
    pooled_width = width // 2
    row = place // pooled_width * 2 + corner // 2  # of all items together: heights are even
    column = place % pooled_width * 2 + corner % 2
    where = (row * width + column)[:, None] * C + channel
    return tl.load(x + where).to(tl.float32), where


@triton.jit
@no_type_check
def _pool_kernel(
    x,
    sign,
    top,
    moments,
    width,
    places,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    C: tl.constexpr,
):
    view, program = tl.program_id(1), tl.program_id(0)
    channel = tl.arange(0, C)[None, :]
    up = tl.where(tl.load(sign + channel) < 0, -1.0, 1.0)
    first = view * places + program * STEPS * BLOCK
    near, _ = _load_corner(x, first + tl.zeros([1], tl.int32), 0, width, channel, C)
    sums = tl.zeros([BLOCK, C], tl.float32)  # of distances from a value near the mean
    squares = tl.zeros([BLOCK, C], tl.float32)
    for step in tl.static_range(STEPS):
        place = first + step * BLOCK + tl.arange(0, BLOCK)
        best = tl.full([BLOCK, C], float("-inf"), tl.float32)
        for corner in tl.static_range(4):
            value, _ = _load_corner(x, place, corner, width, channel, C)
            best = tl.maximum(best, value * up)
            sums += value - near
            squares += (value - near) * (value - near)
        tl.store(top + place[:, None] * C + channel, best * up)
    count = 4 * STEPS * BLOCK
    mean = tl.sum(sums, 0)[None, :] / count
    variance = tl.sum(squares, 0)[None, :] / count - mean * mean
    programs = tl.num_programs(0)
    where = (view * C + channel) * programs + program
    tl.store(moments + where, near + mean)
    tl.store(moments + 2 * C * programs + where, variance)


@triton.jit
@no_type_check
def _pool_grad_kernel(
    x, sign, grad, affine, out, width, places, BLOCK: tl.constexpr, C: tl.constexpr
):
    view = tl.program_id(1)
    channel = tl.arange(0, C)[None, :]
    up = tl.where(tl.load(sign + channel) < 0, -1.0, 1.0)
    offset = tl.load(affine + view * 2 * C + channel)
    slope = tl.load(affine + view * 2 * C + C + channel)
    place = view * places + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, at_a = _load_corner(x, place, 0, width, channel, C)
    b, at_b = _load_corner(x, place, 1, width, channel, C)
    c, at_c = _load_corner(x, place, 2, width, channel, C)
    d, at_d = _load_corner(x, place, 3, width, channel, C)
    best = tl.maximum(tl.maximum(a * up, b * up), tl.maximum(c * up, d * up)) * up
    g = tl.load(grad + place[:, None] * C + channel).to(tl.float32)
    tl.store(out + at_a, offset + slope * a + tl.where(a == best, g, 0.0))
    g = tl.where(a == best, 0.0, g)  # of equal values, the first takes the gradient
    tl.store(out + at_b, offset + slope * b + tl.where(b == best, g, 0.0))
    g = tl.where(b == best, 0.0, g)
    tl.store(out + at_c, offset + slope * c + tl.where(c == best, g, 0.0))
    g = tl.where(c == best, 0.0, g)
    tl.store(out + at_d, offset + slope * d + tl.where(d == best, g, 0.0))


def patch_gram(x: Tensor) -> Tensor:
    """Return sums over positions of the products of [patch, 1] with itself, [views, 16, 16]."""
    lower = _patch_gram(x).sum(1, dtype=torch.float64)
    return lower + lower.tril(-1).mT


@custom_op("abt::patch_gram", mutates_args=())
def _patch_gram(x: Tensor) -> Tensor:
    items, height, width = x.shape
    positions = items // VIEWS * height * width
    programs = triton.cdiv(positions, GRAM_BLOCK)
    out = x.new_zeros(VIEWS, programs, ROWS, ROWS)
    _gram_kernel[programs, VIEWS](x.contiguous(), out, height, width, positions, GRAM_BLOCK)
    return out


@_patch_gram.register_fake
def _(x: Tensor) -> Tensor:
    items, height, width = x.shape
    positions = items // VIEWS * height * width
    return x.new_empty(VIEWS, triton.cdiv(positions, GRAM_BLOCK), ROWS, ROWS)


@custom_op("abt::conv_relu_pool", mutates_args=())
def conv_relu_pool(x: Tensor, kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """Return max_pool(relu(conv(x))) in `dtype`, channels last."""
    items, height, width = x.shape
    channels = kernel.shape[2]
    places = items // VIEWS * (height // 2) * (width // 2)
    out = x.new_empty(items, height // 2, width // 2, channels, dtype=dtype)
    grid = (places // BLOCK, VIEWS)
    _conv_kernel[grid](
        x.contiguous(), kernel.contiguous(), out, height, width, places, BLOCK, channels
    )
    return out


@conv_relu_pool.register_fake
def _(x: Tensor, kernel: Tensor, dtype: torch.dtype) -> Tensor:
    items, height, width = x.shape
    return x.new_empty(items, height // 2, width // 2, kernel.shape[2], dtype=dtype)


@custom_op("abt::conv_relu_pool_grad", mutates_args=())
def _conv_relu_pool_grad(x: Tensor, kernel: Tensor, grad: Tensor) -> Tensor:
    items, height, width = x.shape
    channels = kernel.shape[2]
    places = items // VIEWS * (height // 2) * (width // 2)
    steps = triton.cdiv(places, GRAD_BLOCK * PROGRAMS)
    out = kernel.new_empty(VIEWS, PROGRAMS, ROWS, channels)
    _conv_grad_kernel[PROGRAMS, VIEWS](
        x.contiguous(), kernel.contiguous(), grad.contiguous(), out,
        height, width, places, steps, GRAD_BLOCK, channels,
    )  # fmt: skip
    return out


@_conv_relu_pool_grad.register_fake
def _(x: Tensor, kernel: Tensor, grad: Tensor) -> Tensor:
    return kernel.new_empty(VIEWS, PROGRAMS, ROWS, kernel.shape[2])


def _save_for_conv(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, _conv_relu_pool_grad(*ctx.saved_tensors, grad).sum(1), None


conv_relu_pool.register_autograd(_conv_backward, setup_context=_save_for_conv)


@custom_op("abt::pool_with_statistics", mutates_args=())
def pool_with_statistics(x: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return extremes of 2x2 positions, and mean and variance of each view."""
    items, height, width, channels = x.shape
    places = items // VIEWS * (height // 2) * (width // 2)
    top = x.new_empty(items, height // 2, width // 2, channels)
    programs = places // (POOL_BLOCK * POOL_STEPS)
    moments = x.new_empty(2, VIEWS, channels, programs, dtype=torch.float32)
    _pool_kernel[programs, VIEWS](
        x.contiguous(), sign, top, moments, width, places, POOL_STEPS, POOL_BLOCK, channels
    )
    means, variances = moments  # of parts of equal size
    spread, mean = torch.var_mean(means, 2, correction=0)
    return top, mean, variances.mean(2) + spread


@pool_with_statistics.register_fake
def _(x: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    items, height, width, channels = x.shape
    statistic = x.new_empty(VIEWS, channels, dtype=torch.float32)
    top = x.new_empty(items, height // 2, width // 2, channels)
    return top, statistic, torch.empty_like(statistic)


@custom_op("abt::pool_with_statistics_grad", mutates_args=())
def _pool_with_statistics_grad(x: Tensor, sign: Tensor, grad: Tensor, affine: Tensor) -> Tensor:
    """Return affine[:, 0] + affine[:, 1] * x, plus `grad` at the extremes."""
    items, height, width, channels = x.shape
    places = items // VIEWS * (height // 2) * (width // 2)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (places // GRAD_BLOCK, VIEWS)
    _pool_grad_kernel[grid](
        x.contiguous(), sign, grad.contiguous(), affine.contiguous(), out,
        width, places, GRAD_BLOCK, channels,
    )  # fmt: skip
    return out


@_pool_with_statistics_grad.register_fake
def _(x: Tensor, sign: Tensor, grad: Tensor, affine: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _save_for_pool(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _pool_backward(
    ctx: Any, grad: Tensor, grad_mean: Tensor, grad_variance: Tensor
) -> tuple[Tensor | None, ...]:
    x, sign, mean = ctx.saved_tensors
    slope = grad_variance * (2 * VIEWS / x[..., 0].numel())
    offset = grad_mean * (VIEWS / x[..., 0].numel()) - slope * mean
    affine = torch.stack([offset, slope], dim=1)
    return _pool_with_statistics_grad(x, sign, grad, affine), None


pool_with_statistics.register_autograd(_pool_backward, setup_context=_save_for_pool)
