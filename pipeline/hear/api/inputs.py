"""What every model with the HEAR API does with its audio before it embeds it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's weights or buffers; the CPU where it has none."""
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
    faulty = (~audio.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if faulty:
        raise ValueError(f"audio has values that are not finite in clips {faulty[:10]}.")
    return audio.to(device_of(model), torch.float32)


@contextmanager
def deterministic(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, whatever the caller set, and full float32 precision in convolutions."""
    model.eval()
    with ExitStack() as stack:
        if torch.backends.cudnn.is_available():
            full = {"enabled": True, "deterministic": True, "allow_tf32": False}
            stack.enter_context(torch.backends.cudnn.flags(**full))
        stack.enter_context(torch.autocast(device_of(model).type, enabled=False))
        yield
