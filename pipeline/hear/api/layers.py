"""Outputs of an encoder's layers, combined into one representation (`hear.layers`).

    last      the representation y of pre-training
    concat    all layers, concatenated
    mean      the mean of all layers, if they have one size (vit, vitc)

AudioNTT's layers are the first convolution block, the MLP's hidden layer and y (which includes the
second block), each pooled over time like y: maximum plus mean. A ViT's layers are its blocks: each
output passes through the final norm and is pooled like the last one, which is y.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.encoders.audiontt import AudioNTT
from pipeline.encoders.build import Encoder
from pipeline.encoders.vit import ViT


def represent(encoder: Encoder, x: Float[Tensor, "B 1 F T"], layers: str) -> Float[Tensor, "B D"]:
    """Return the representation of inputs that fit into one pass of the encoder."""
    if layers == "last":
        return encoder(x)
    outputs = _audiontt(encoder, x) if isinstance(encoder, AudioNTT) else _vit(encoder, x)
    return torch.cat(outputs, dim=-1) if layers == "concat" else torch.stack(outputs).mean(dim=0)


def representation_size(encoder: Encoder, n_mels: int, layers: str) -> int:
    """Return the size of the representation."""
    if layers != "concat":
        return encoder.embed_dim
    if isinstance(encoder, ViT):
        return len(encoder.blocks) * encoder.embed_dim
    conv: Any = encoder.conv[0]
    hidden: Any = encoder.mlp[0]
    return conv[0].out_channels * (n_mels // 2) + hidden.out_features + encoder.embed_dim


def _audiontt(encoder: AudioNTT, x: Float[Tensor, "B 1 F T"]) -> list[Tensor]:
    first, second = encoder.conv
    h1 = first(x)
    h2 = second(h1)
    hidden = encoder.mlp[1](encoder.mlp[0](_frames(h2)))
    pooled = [part.amax(dim=1) + part.mean(dim=1) for part in (_frames(h1), hidden)]
    return [*pooled, encoder.encode(h2)]


def _frames(h: Float[Tensor, "B C F2 T2"]) -> Float[Tensor, "B T2 F2*C"]:
    return h.permute(0, 3, 2, 1).flatten(2)


def _vit(encoder: ViT, x: Float[Tensor, "B 1 F T"]) -> list[Tensor]:
    tokens = encoder.tokens(encoder.stem(x))
    outputs = []
    for block in encoder.blocks:
        tokens = block(tokens)
        normed = encoder.norm(tokens)
        outputs.append(normed[:, 0] if encoder.pool == "cls" else normed[:, 1:].mean(dim=1))
    return outputs
