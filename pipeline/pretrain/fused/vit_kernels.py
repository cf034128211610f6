"""Triton kernels of `pipeline.pretrain.fused.vit`, which defines what they compute.

All tensors are contiguous; arithmetic is in float32, matrix products in the tensors' own precision.
Gradients of biases and norms are sums over rows, in two steps of fixed order.
"""

import math
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

LOG2_E = math.log2(math.e)
PROGRAMS = 528  # of the normalization's gradient, a sum over rows: 4 per multiprocessor
NORM_ROWS, NORM_WARPS = 1, 4  # of the same kernel, per step
GELU_ROWS, GELU_COLUMNS = 8, 128  # tile of the GELU kernels
GELU_PROGRAMS = 176  # per column of tiles, of GELU's gradient, a sum over rows


@triton.jit
@no_type_check
def _attention_tiles(
    qkv, q_bias, v_bias, tokens, scale, H: tl.constexpr, D: tl.constexpr, N: tl.constexpr
):
    """Return this program's queries, keys, values, probabilities, offsets and mask of queries."""
    item, head = tl.program_id(0) // H, tl.program_id(0) % H
    n, d = tl.arange(0, N)[:, None], tl.arange(0, D)[None, :]
    inside = n < tokens
    qkv += item.to(tl.int64) * tokens * (3 * H * D)
    where = n * (3 * H * D) + head * D + d
    q = tl.load(qkv + where, mask=inside, other=0.0)
    k = tl.load(qkv + where + H * D, mask=inside, other=0.0)
    v = tl.load(qkv + where + 2 * H * D, mask=inside, other=0.0)
    q = (q.to(tl.float32) + tl.load(q_bias + head * D + d)).to(k.dtype)
    v = (v.to(tl.float32) + tl.load(v_bias + head * D + d)).to(k.dtype)
    score = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
    score = tl.where(tl.arange(0, N)[None, :] < tokens, score, float("-inf"))
    p = tl.exp2(score - tl.max(score, 1)[:, None])
    return q, k, v, p / tl.sum(p, 1)[:, None], where, inside


@triton.jit
@no_type_check
def _attend_kernel(
    qkv, q_bias, v_bias, out, tokens, scale, H: tl.constexpr, D: tl.constexpr, N: tl.constexpr
):
    _, _, v, p, _, inside = _attention_tiles(qkv, q_bias, v_bias, tokens, scale, H, D, N)
    item, head = tl.program_id(0) // H, tl.program_id(0) % H
    n, d = tl.arange(0, N)[:, None], tl.arange(0, D)[None, :]
    out += item.to(tl.int64) * tokens * (H * D)
    where = n * (H * D) + head * D + d
    mixed = tl.dot(p.to(v.dtype), v, input_precision="tf32x3")
    tl.store(out + where, mixed.to(v.dtype), mask=inside)


@triton.jit
@no_type_check
def _attend_grad_kernel(
    qkv,
    q_bias,
    v_bias,
    grad,
    out,
    bias_grad,
    tokens,
    scale,
    H: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
):
    q, k, v, p, where, inside = _attention_tiles(qkv, q_bias, v_bias, tokens, scale, H, D, N)
    item, head = tl.program_id(0) // H, tl.program_id(0) % H
    n, d = tl.arange(0, N)[:, None], tl.arange(0, D)[None, :]
    grad += item.to(tl.int64) * tokens * (H * D)
    g = tl.load(grad + n * (H * D) + head * D + d, mask=inside, other=0.0)
    out += item.to(tl.int64) * tokens * (3 * H * D)
    p = tl.where(inside, p, 0.0)  # rows beyond the queries
    row = bias_grad + item * (2 * H * D) + head * D + tl.arange(0, D)
    v_grad = tl.dot(tl.trans(p.to(q.dtype)), g, input_precision="tf32x3")
    tl.store(row + H * D, tl.sum(v_grad, 0))
    tl.store(out + where + 2 * H * D, v_grad.to(q.dtype), mask=inside)
    p_grad = tl.dot(g, tl.trans(v), input_precision="tf32x3")
    score_grad = p * (p_grad - tl.sum(p_grad * p, 1)[:, None]) * (scale * 0.6931471805599453)
    score_grad = score_grad.to(q.dtype)
    q_grad = tl.dot(score_grad, k, input_precision="tf32x3")
    tl.store(row, tl.sum(q_grad, 0))
    tl.store(out + where, q_grad.to(q.dtype), mask=inside)
    k_grad = tl.dot(tl.trans(score_grad), q, input_precision="tf32x3")
    tl.store(out + where + H * D, k_grad.to(q.dtype), mask=inside)


@triton.jit
@no_type_check
def _add_and_norm_kernel(
    x,
    branch,
    bias,
    weight,
    shift,
    out,
    normed,
    statistics,
    eps,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    inside = d < D
    total = tl.load(x + row * D + d, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(branch + row * D + d, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(bias + d, mask=inside, other=0.0)
    tl.store(out + row * D + d, total, mask=inside)
    mean = tl.sum(total) / D
    centred = tl.where(inside, total - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred) / D + eps)
    gain = tl.load(weight + d, mask=inside, other=0.0)
    result = centred * inverse * gain + tl.load(shift + d, mask=inside, other=0.0)
    tl.store(normed + row * D + d, result, mask=inside)
    tl.store(statistics + 2 * row, mean)
    tl.store(statistics + 2 * row + 1, inverse)


@triton.jit
@no_type_check
def _add_and_norm_grad_kernel(
    out,
    statistics,
    weight,
    out_grad,
    normed_grad,
    x_grad,
    branch_grad,
    sums,
    rows,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    d = tl.arange(0, WIDTH)[None, :]
    gain = tl.load(weight + d, mask=d < D, other=0.0)
    bias_sum = tl.zeros([ROWS, WIDTH], tl.float32)
    weight_sum = tl.zeros([ROWS, WIDTH], tl.float32)
    shift_sum = tl.zeros([ROWS, WIDTH], tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (d < D) & (row < rows)
        at = row.to(tl.int64) * D + d
        mean = tl.load(statistics + 2 * row, mask=row < rows, other=0.0)
        inverse = tl.load(statistics + 2 * row + 1, mask=row < rows, other=0.0)
        z = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(normed_grad + at, mask=inside, other=0.0).to(tl.float32)
        direct = tl.load(out_grad + at, mask=inside, other=0.0).to(tl.float32)
        z = tl.where(inside, (z - mean) * inverse, 0.0)
        scaled = g * gain
        along = tl.sum(scaled * z, 1)[:, None] / D
        total = (scaled - z * along - tl.sum(scaled, 1)[:, None] / D) * inverse + direct
        total = tl.where(inside, total, 0.0)
        tl.store(x_grad + at, total, mask=inside)
        tl.store(branch_grad + at, total, mask=inside)
        bias_sum += total
        weight_sum += g * z
        shift_sum += g
    d = tl.arange(0, WIDTH)
    row_of_sums = sums + tl.program_id(0) * 3 * D + d
    tl.store(row_of_sums, tl.sum(bias_sum, 0), mask=d < D)
    tl.store(row_of_sums + D, tl.sum(weight_sum, 0), mask=d < D)
    tl.store(row_of_sums + 2 * D, tl.sum(shift_sum, 0), mask=d < D)


@triton.jit
@no_type_check
def _gelu_kernel(x, bias, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    at = row.to(tl.int64) * columns + column
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    z += tl.load(bias + column, mask=column < columns, other=0.0)
    tl.store(out + at, z * 0.5 * (1 + tl.erf(z * 0.7071067811865476)), mask=inside)


@triton.jit
@no_type_check
def _gelu_grad_kernel(
    x,
    bias,
    grad,
    out,
    sums,
    rows,
    columns,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    shift = tl.load(bias + column, mask=column < columns, other=0.0)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < columns)
        at = row.to(tl.int64) * columns + column
        z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + shift
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        g *= 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * density
        tl.store(out + at, g, mask=inside)
        total += g
    where = tl.program_id(0) * columns + column
    tl.store(sums + where, tl.sum(total, 0)[None, :], mask=column < columns)


@custom_op("abt::attend", mutates_args=())
def attend(qkv: Tensor, q_bias: Tensor, v_bias: Tensor, heads: int) -> Tensor:
    """Return multi-head attention [V, N, D] of products [V, N, 3 D] without their biases."""
    items, tokens, width = qkv.shape
    dim = width // 3 // heads
    out = qkv.new_empty(items, tokens, width // 3)
    block = max(16, triton.next_power_of_2(tokens))
    _attend_kernel[(items * heads,)](
        qkv.contiguous(), q_bias, v_bias, out, tokens, LOG2_E / math.sqrt(dim), heads, dim, block
    )
    return out


@attend.register_fake
def _(qkv: Tensor, q_bias: Tensor, v_bias: Tensor, heads: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)


@custom_op("abt::attend_grad", mutates_args=())
def _attend_grad(
    qkv: Tensor, q_bias: Tensor, v_bias: Tensor, grad: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    items, tokens, width = qkv.shape
    dim = width // 3 // heads
    qkv = qkv.contiguous()
    out = torch.empty_like(qkv)
    bias_grad = q_bias.new_empty(items, 2, width // 3)
    block = max(16, triton.next_power_of_2(tokens))
    _attend_grad_kernel[(items * heads,)](
        qkv, q_bias, v_bias, grad.contiguous(), out, bias_grad,
        tokens, LOG2_E / math.sqrt(dim), heads, dim, block,
    )  # fmt: skip
    return out, bias_grad


@_attend_grad.register_fake
def _(
    qkv: Tensor, q_bias: Tensor, v_bias: Tensor, grad: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), q_bias.new_empty(len(qkv), 2, *q_bias.shape)


def _save_for_attend(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.heads = inputs[3]


def _attend_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv_grad, bias_grad = _attend_grad(*ctx.saved_tensors, grad, ctx.heads)
    return qkv_grad, *bias_grad.sum(0).unbind(), None


attend.register_autograd(_attend_backward, setup_context=_save_for_attend)


@custom_op("abt::add_and_norm", mutates_args=())
def _add_and_norm(
    x: Tensor, branch: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, branch, dim = x.contiguous(), branch.contiguous(), x.shape[-1]
    out, normed = torch.empty_like(x), torch.empty_like(branch)
    statistics = weight.new_empty(x.numel() // dim, 2)
    _add_and_norm_kernel[(len(statistics),)](
        x, branch, bias, weight, shift, out, normed, statistics, eps,
        dim, triton.next_power_of_2(dim),
    )  # fmt: skip
    return out, normed, statistics


@_add_and_norm.register_fake
def _(
    x: Tensor, branch: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = weight.new_empty(x.numel() // x.shape[-1], 2)
    return x.new_empty(x.shape), branch.new_empty(branch.shape), statistics


@custom_op("abt::add_and_norm_grad", mutates_args=())
def _add_and_norm_grad(
    out: Tensor, statistics: Tensor, weight: Tensor, out_grad: Tensor, normed_grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, dim = len(statistics), out.shape[-1]
    out_grad, normed_grad = out_grad.contiguous(), normed_grad.contiguous()
    x_grad, branch_grad = torch.empty_like(out), torch.empty_like(normed_grad)
    sums = weight.new_empty(PROGRAMS, 3, dim)
    _add_and_norm_grad_kernel[(PROGRAMS,)](
        out, statistics, weight, out_grad, normed_grad, x_grad, branch_grad, sums, rows,
        triton.cdiv(rows, PROGRAMS * NORM_ROWS), NORM_ROWS, dim, triton.next_power_of_2(dim),
        num_warps=NORM_WARPS,
    )  # fmt: skip
    return x_grad, branch_grad, sums


@_add_and_norm_grad.register_fake
def _(
    out: Tensor, statistics: Tensor, weight: Tensor, out_grad: Tensor, normed_grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sums = weight.new_empty(PROGRAMS, 3, out.shape[-1])
    return out.new_empty(out.shape), normed_grad.new_empty(normed_grad.shape), sums


def _save_for_norm(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[0], output[2], inputs[3])


def _norm_backward(
    ctx: Any, out_grad: Tensor, normed_grad: Tensor, _: Any
) -> tuple[Tensor | None, ...]:
    x_grad, branch_grad, sums = _add_and_norm_grad(*ctx.saved_tensors, out_grad, normed_grad)
    return x_grad, branch_grad, *sums.sum(0).unbind(), None


_add_and_norm.register_autograd(_norm_backward, setup_context=_save_for_norm)


def add_and_norm(
    x: Tensor, branch: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return x + branch + bias, and its layer norm in the branch's precision."""
    out, normed, _ = _add_and_norm(x, branch, bias, weight, shift, eps)
    return out, normed


@custom_op("abt::gelu", mutates_args=())
def gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Return the GELU of x + bias."""
    x = x.contiguous()
    out = torch.empty_like(x)
    columns = x.shape[-1]
    rows = x.numel() // columns
    grid = (triton.cdiv(rows, GELU_ROWS), triton.cdiv(columns, GELU_COLUMNS))
    _gelu_kernel[grid](x, bias, out, rows, columns, GELU_ROWS, GELU_COLUMNS)
    return out


@gelu.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@custom_op("abt::gelu_grad", mutates_args=())
def _gelu_grad(x: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    out = torch.empty_like(x)
    columns = x.shape[-1]
    rows = x.numel() // columns
    steps = triton.cdiv(rows, GELU_PROGRAMS * GELU_ROWS)
    sums = bias.new_empty(GELU_PROGRAMS, columns)
    _gelu_grad_kernel[GELU_PROGRAMS, triton.cdiv(columns, GELU_COLUMNS)](
        x, bias, grad.contiguous(), out, sums, rows, columns, steps, GELU_ROWS, GELU_COLUMNS
    )
    return out, sums


@_gelu_grad.register_fake
def _(x: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(GELU_PROGRAMS, len(bias))


def _save_for_gelu(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gelu_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x_grad, sums = _gelu_grad(*ctx.saved_tensors, grad)
    return x_grad, sums.sum(0)


gelu.register_autograd(_gelu_backward, setup_context=_save_for_gelu)
