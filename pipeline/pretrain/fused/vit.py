"""The transformer blocks with fewer passes over their activations.

A residual addition and the normalization that follows it are one operation; attention reads
queries, keys and values as the matrix product leaves them; both, and GELU, add the bias of the
product before them, so that its gradient is a by-product of theirs. If CLS represents the input,
the other tokens are dropped after the last attention. On a GPU the three operations below are
Triton kernels (`vit_kernels`); the expressions here define them.
"""

from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.vit import ViT

if torch.cuda.is_available():
    from pipeline.pretrain.fused import vit_kernels as kernels

MAX_TOKENS = 128  # of the attention kernel, which holds a head's whole matrix


def encode(
    encoder: ViT, grid: Float[Tensor, "V D F_p T_p"], visible: Int[Tensor, "B K"] | None = None
) -> Float[Tensor, "V D"]:
    """Return `encoder.encode` of both views; `visible` masks the first, of B items.

    A masked view has fewer tokens than the other; they then pass the blocks separately.
    """
    if visible is None:
        return _pass_blocks(encoder, encoder.tokens(grid))
    parts = (encoder.tokens(grid[: len(visible)], visible), encoder.tokens(grid[len(visible) :]))
    return torch.cat([_pass_blocks(encoder, x) for x in parts])


def _pass_blocks(encoder: ViT, x: Float[Tensor, "V N D"]) -> Float[Tensor, "V D"]:
    """Return the representation, given the tokens."""
    blocks: list[Any] = [*encoder.blocks]
    h = blocks[0].norm_1(x)
    for block, following in zip_longest(blocks, blocks[1:]):
        attention, (up, _, down) = block.attention, block.mlp
        qkv = functional.linear(h, attention.qkv.weight)
        h = attend(qkv, attention.q_bias, attention.v_bias, attention.heads)
        if following is None and encoder.pool == "cls":
            x, h = x[:, :1], h[:, :1]
        h = functional.linear(h, attention.out.weight)
        x, h = add_and_norm(x, h, attention.out.bias, block.norm_2)
        h = gelu(functional.linear(h, up.weight), up.bias)
        h = functional.linear(h, down.weight)
        norm = encoder.norm if following is None else following.norm_1
        x, h = add_and_norm(x, h, down.bias, norm)
    return h[:, 0] if encoder.pool == "cls" else h[:, 1:].mean(dim=1)


def attend(
    qkv: Float[Tensor, "V N QKV"],
    q_bias: Float[Tensor, " D"],
    v_bias: Float[Tensor, " D"],
    heads: int,
) -> Float[Tensor, "V N D"]:
    """Return multi-head attention of queries, keys and values without their biases."""
    if qkv.is_cuda and qkv.shape[1] <= MAX_TOKENS:
        return kernels.attend(qkv, q_bias, v_bias, heads)
    qkv = qkv + torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]).to(qkv.dtype)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def add_and_norm(
    x: Float[Tensor, "V N D"],
    branch: Float[Tensor, "V N D"],
    bias: Float[Tensor, " D"],
    norm: nn.LayerNorm,
) -> tuple[Float[Tensor, "V N D"], Float[Tensor, "V N D"]]:
    """Return x + branch + bias, and its normalization in the branch's precision."""
    if x.is_cuda:
        return kernels.add_and_norm(x, branch, bias, norm.weight, norm.bias, norm.eps)
    x = x + branch + bias
    return x, norm(x).to(branch.dtype)


def gelu(x: Float[Tensor, "V N D"], bias: Float[Tensor, " D"]) -> Float[Tensor, "V N D"]:
    """Return the GELU of x + bias."""
    if x.is_cuda:
        return kernels.gelu(x, bias)
    return functional.gelu(x + bias.to(x.dtype))
