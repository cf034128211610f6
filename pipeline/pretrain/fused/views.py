"""Both views through the network at once, with the results of two passes of the plain modules.

The modules of `pipeline.encoders.build` and `pipeline.pretrain.projector` are the definition; the
functions here use their weights. All layers take the views concatenated, [view 1; view 2] along the
batch; only batch norm treats each view by itself. Training on a GPU takes this path; on a CPU,
tests compare it with the definition.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.audiontt import AudioNTT
from pipeline.encoders.build import Encoder
from pipeline.pretrain.fused import audiontt, vit
from pipeline.pretrain.fused.norm import VIEWS, batch_norm


def embed_views(
    encoder: Encoder,
    projector: nn.Sequential,
    view_1: Float[Tensor, "B F T"],
    view_2: Float[Tensor, "B F T"],
    visible: Int[Tensor, "B K"] | None = None,
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """Return the embeddings z of both views, as the model in training mode would.

    `visible` holds the patches of view 1 that a ViT sees; None: all.
    """
    x = torch.cat([view_1, view_2])
    z_1, z_2 = layers(projector, _encode(encoder, x, visible)).chunk(VIEWS)
    return z_1, z_2


def _encode(
    encoder: Encoder, x: Float[Tensor, "V F T"], visible: Int[Tensor, "B K"] | None
) -> Float[Tensor, "V D"]:
    if not isinstance(encoder, AudioNTT):
        return vit.encode(encoder, layers(encoder.stem, x[:, None]), visible)
    if audiontt.suits(encoder, x):
        return audiontt.encode(encoder, x)
    return encoder.encode(layers(encoder.conv, x[:, None]))


def layers(network: nn.Module, x: Tensor, n_views: int = VIEWS) -> Tensor:
    """Apply a network of plain layers, nested or not, to concatenated views."""
    if isinstance(network, nn.Sequential):
        for layer in network:
            x = layers(layer, x, n_views)
        return x
    if isinstance(network, nn.BatchNorm1d | nn.BatchNorm2d):
        return batch_norm(network, x, n_views)
    if isinstance(network, nn.Conv2d) and network.in_channels == 1:
        return _convolve_one_channel(network, x)
    return network(x)


def _convolve_one_channel(
    conv: nn.Conv2d, x: Float[Tensor, "V 1 F T"]
) -> Float[Tensor, "V C F_out T_out"]:
    """Convolve by one matrix product, which is faster for patches of few values."""
    top, left = int(conv.padding[0]), int(conv.padding[1])
    down, right = conv.stride
    padded = functional.pad(x[:, 0], (left, left, top, top))
    patches = padded.unfold(1, conv.kernel_size[0], down).unfold(2, conv.kernel_size[1], right)
    patches, taps = patches.flatten(3), conv.weight.flatten(1)  # [V, F_out, T_out, taps]
    aligned = (0, -taps.shape[1] % 8)
    out = functional.linear(
        functional.pad(patches, aligned), functional.pad(taps, aligned), conv.bias
    )
    return out.permute(0, 3, 1, 2)
