"""AudioNTT on overlapping windows, without repeating the work that they share.

Convolution, pooling and MLP are translation-equivariant, so a frame has the same features in every
window that contains it, with two exceptions. Pooling halves time twice, so frames are grouped in
four ways, by the start of the window modulo 4. And the zero padding at a window's ends affects its
first and last output frame (no others): these two are computed separately for each window, from
the few input frames that they depend on.

Equals the encoder on each window, up to the order of floating-point sums (relative error below
1e-5). For windows of 96 frames every 5 frames, it needs a fifth of the convolutions and a third of
the MLP.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline.encoders.audiontt import AudioNTT

STRIDE = 4  # input frames per output frame
MIN_OUTPUTS = 3  # output frames of a window, so that one is neither first nor last


def shares_work(frames: int, hop: int) -> bool:
    """Return whether windows of this many frames, one every `hop`, overlap enough to be faster."""
    return frames // STRIDE >= MIN_OUTPUTS and hop * 8 <= frames


def slide(
    encoder: AudioNTT, log_mel: Float[Tensor, "F L"], frames: int, hop: int
) -> Float[Tensor, "N D"]:
    """Return the representation of every window; the first starts at frame 0."""
    windows = log_mel.unfold(-1, frames, hop).movedim(1, 0)[:, None]  # [N, 1, F, frames]
    outputs = frames // STRIDE
    first, last = _first_frame(encoder, windows), _last_frame(encoder, windows, outputs)
    highest, total = torch.maximum(first, last), first + last
    period = STRIDE // math.gcd(hop, STRIDE)  # windows between two with the same start modulo 4
    for index, features in enumerate(
        _features_by_offset(encoder, log_mel, hop, min(period, len(windows)))
    ):
        begin, step = 1 + index * hop // STRIDE, period * hop // STRIDE
        inner = features[begin:].unfold(0, outputs - 2, step)[: len(highest[index::period])]
        highest[index::period] = torch.maximum(highest[index::period], inner.amax(dim=-1))
        total[index::period] += inner.sum(dim=-1)
    return highest + total / outputs


def _features_by_offset(
    encoder: AudioNTT, log_mel: Float[Tensor, "F L"], hop: int, count: int
) -> Iterator[Float[Tensor, "K D"]]:
    """Yield the features of all frames, grouped as in each of the first `count` windows."""
    first, second = _blocks(encoder)
    convolved = _convolve(first, log_mel[None, None], (1, 1))
    halves: dict[int, Tensor] = {}
    for start in (index * hop % STRIDE for index in range(count)):
        half = start % 2
        if half not in halves:
            halves[half] = _convolve(second, _pool(first, convolved[..., half:]), (1, 1))
        yield encoder.frame_features(_pool(second, halves[half][..., start // 2 :]))[0]


def _first_frame(encoder: AudioNTT, windows: Float[Tensor, "N 1 F T"]) -> Float[Tensor, "N D"]:
    """Return the first output frame, from the 7 input frames it depends on."""
    x = windows[..., :7]
    for block in _blocks(encoder):
        x = _pool(block, _convolve(block, x, (1, 0)))
    return encoder.frame_features(x)[:, 0]


def _last_frame(
    encoder: AudioNTT, windows: Float[Tensor, "N 1 F T"], outputs: int
) -> Float[Tensor, "N D"]:
    """Return the last output frame, from the 7 to 10 input frames it depends on."""
    x = windows[..., STRIDE * outputs - 7 :]
    for block in _blocks(encoder):
        x = _pool(block, _convolve(block, x, (0, 1)))
    return encoder.frame_features(x)[:, 0]


def _blocks(encoder: AudioNTT) -> list[nn.Sequential]:
    return [block for block in encoder.conv if isinstance(block, nn.Sequential)]


def _convolve(block: nn.Sequential, x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Apply a block's convolution and batch norm, with zeros padded before and after."""
    conv: Any = block[0]
    padded = functional.pad(x, (*padding, 1, 1))
    return block[1](functional.conv2d(padded, conv.weight, conv.bias))


def _pool(block: nn.Sequential, x: Tensor) -> Tensor:
    """Apply the rest of a block: pooling and ReLU."""
    return block[3](block[2](x))
