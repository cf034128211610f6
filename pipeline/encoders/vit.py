"""ViT and ViT_C: transformer encoders with a linear or a convolutional stem (paper section 2.2).

Both cut the spectrogram into patches of `patch_mels` x `patch_frames`, tokens in row-major order
over (frequency, time). ViT_C has a stack of 3x3 convolutions in place of the patch projection and
one of the 12 transformer blocks (Xiao et al. 2021). The linear stem of ViT stays at its random
initialisation (Chen, Xie, He 2021).
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.params import ViTParams

WIDTH_HEADS = {"base": (768, 12), "small": (384, 6), "tiny": (192, 3)}
DEPTH = 12
MLP_RATIO = 4
NORM_EPS = 1e-6
INIT_STD = 0.02  # of the CLS token and of learned positions
STEM_STRIDES = {  # of the convolutional stem, (frequency, time) per layer
    (16, 16): [(2, 2)] * 4,
    (16, 8): [(2, 2)] * 3 + [(2, 1)],
    (8, 8): [(2, 2)] * 3 + [(1, 1)],
    (64, 2): [(2, 2)] + [(2, 1)] * 5,
}


class ViT(nn.Module):
    """Transformer encoder for inputs of `crop_frames` frames."""

    def __init__(self, params: ViTParams, n_mels: int, crop_frames: int, conv_stem: bool) -> None:
        super().__init__()
        patch = (params.patch_mels, params.patch_frames)
        dim, heads = WIDTH_HEADS[params.size]
        self.embed_dim = dim
        self.segment_frames = crop_frames
        self.pool = params.pool
        self.stem = _conv_stem(dim, patch) if conv_stem else _patch_stem(dim, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * INIT_STD)
        grid = (n_mels // patch[0], crop_frames // patch[1])
        self.position: Tensor
        if params.position == "learned":
            self.position = nn.Parameter(torch.randn(1, 1 + grid[0] * grid[1], dim) * INIT_STD)
        else:
            self.register_buffer("position", sincos_position(dim, *grid))
        depth = DEPTH - 1 if conv_stem else DEPTH
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(
        self, x: Float[Tensor, "B 1 F T"], visible: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B D"]:
        """Return the CLS token, or the mean of the patch tokens, after the last block.

        `visible` holds the patches that the encoder sees of each item (view masking); None: all.
        """
        return self.encode(self.stem(x), visible)

    def encode(
        self, grid: Float[Tensor, "B D F_p T_p"], visible: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B D"]:
        """Return the representation, given the output of the stem."""
        tokens = self.tokens(grid, visible)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(dim=1)

    def tokens(
        self, grid: Float[Tensor, "B D F_p T_p"], visible: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Return the CLS token and the visible patches, row by row, with positions added."""
        patches = grid.flatten(2).transpose(1, 2) + self.position[:, 1:]
        if visible is not None:
            patches = patches.take_along_dim(visible[..., None], dim=1)
        cls = (self.cls + self.position[:, :1]).expand(len(patches), -1, -1)
        return torch.cat([cls.to(patches.dtype), patches], dim=1)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = Attention(dim, heads)
        self.norm_2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            _linear(dim, MLP_RATIO * dim), nn.GELU(), _linear(MLP_RATIO * dim, dim)
        )

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Return x after attention and MLP, each with its residual."""
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class Attention(nn.Module):
    """Multi-head self-attention whose keys have no bias (Bao et al. 2021, BEiT)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.out = _linear(dim, dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Return the attention-weighted mixture of the tokens."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = functional.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def sincos_position(dim: int, mel_patches: int, time_patches: int) -> Float[Tensor, "1 N D"]:
    """Return fixed 2-D sine-cosine codes, after zeros for CLS.

    The first half of the dimensions codes the time index, the second half the frequency index;
    each is [sin(p w), cos(p w)] with w_k = 10000^(-k / (dim / 4)).
    """
    omega = 10_000.0 ** (-torch.arange(dim // 4) / (dim / 4))

    def code(index: Tensor) -> Tensor:
        angle = index.flatten()[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    mel, time = torch.meshgrid(torch.arange(mel_patches), torch.arange(time_patches), indexing="ij")
    patches = torch.cat([code(time), code(mel)], dim=1)
    return torch.cat([torch.zeros(1, dim), patches])[None]


def _linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _patch_stem(dim: int, patch: tuple[int, int]) -> nn.Module:
    """Return a projection of each patch, frozen at its initialisation."""
    conv = nn.Conv2d(1, dim, kernel_size=patch, stride=patch)
    bound = math.sqrt(6 / (dim + patch[0] * patch[1]))  # Xavier uniform, as for a linear layer
    nn.init.uniform_(conv.weight, -bound, bound)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv.requires_grad_(False)


def _conv_stem(dim: int, patch: tuple[int, int]) -> nn.Module:
    """Return 3x3 convolutions with channels doubling from dim / 8 to dim, and a 1x1 projection."""
    strides = STEM_STRIDES[patch]
    channels = [1, *(min(dim, dim // 8 * 2**layer) for layer in range(len(strides)))]
    layers: list[nn.Module] = []
    for (before, after), stride in zip(pairwise(channels), strides, strict=True):
        layers += [
            nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(dim, dim, kernel_size=1))
