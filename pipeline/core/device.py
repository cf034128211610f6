"""The device that stages compute on."""

import os

import torch


def choose_device(name: str) -> torch.device:
    """Return the device that `compute.device` asks for.

    Raises:
        RuntimeError: a GPU is requested but not available.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RuntimeError("compute.device = 'cuda', but torch finds no GPU. Use auto or cpu.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def make_deterministic() -> None:
    """Make a GPU compute the same bits in every run; call it before any work on the GPU.

    An operation that cannot do so raises a RuntimeError that names it.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
