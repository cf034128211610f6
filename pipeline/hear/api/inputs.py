"""Input checks and inference settings shared by all models with the HEAR API."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's weights or buffers; the CPU if it has none."""
    tensors: Iterator[Tensor] = chain(model.parameters(), model.buffers())
    return next(tensors, torch.empty(0)).device


def validate_audio(audio: Tensor, model: nn.Module) -> Float[Tensor, "B S"]:
    """Return the audio as float32 on the model's device.

    Raises:
        ValueError: the audio has another shape, no samples, integer or non-finite values.
    """
    if audio.ndim != 2 or 0 in audio.shape:
        raise ValueError(
            f"audio must have the shape [clips, samples], neither of them 0, "
            f"got {list(audio.shape)}."
        )
    if not audio.is_floating_point():
        raise ValueError(f"audio must be floating point in [-1, 1], got {audio.dtype}.")
    invalid = (~audio.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if invalid:
        raise ValueError(f"audio has values that are not finite in clips {invalid[:10]}.")
    return audio.to(device_of(model), torch.float32)


@contextmanager
def deterministic(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, deterministic kernels and full float32 precision in the block."""
    model.eval()
    with ExitStack() as stack:
        if torch.backends.cudnn.is_available():
            flags = {"enabled": True, "deterministic": True, "allow_tf32": False}
            stack.enter_context(torch.backends.cudnn.flags(**flags))
        stack.enter_context(torch.autocast(device_of(model).type, enabled=False))
        yield
