"""The device that stages compute on."""

import torch


def choose_device(name: str) -> torch.device:
    """Return the device that `compute.device` asks for.

    Raises:
        RuntimeError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RuntimeError("compute.device = 'cuda', but torch finds no GPU. Use auto or cpu.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
