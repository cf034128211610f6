"""Several processes that train one model, by means and gradients of the global batch.

Every process has the same weights and an equal share of each batch, and computes the same loss from
statistics of all shares. `torchrun` starts the processes (`relaunch`), one for each GPU, or on a
CPU for tests; without it there is one process, and these functions do nothing.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; process 0 writes the outputs."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_launched() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def relaunch(module: str, processes: int) -> None:
    """Replace this process by torchrun, which runs a module in several local processes."""
    options = ["--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", module]
    os.execv(sys.executable, command)


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started; yield the device of this one."""
    if not is_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    _end_with_parent()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if rank() > 0:
        logging.getLogger().setLevel(logging.ERROR)  # process 0 logs the same
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def _end_with_parent() -> None:
    """End this process soon after torchrun, which may be killed before it can end us."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _AllMean(torch.autograd.Function):
    """Mean over processes; its gradient, for the sum of all losses, is such a mean too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _mean(grad)


def _mean(x: Tensor) -> Tensor:
    x = x.contiguous().clone()
    distributed.all_reduce(x)
    return x / world_size()


def all_mean(x: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, differentiable.

    If every process computes the same loss from such means, the mean of their gradients
    (`average_gradients`) is the gradient of that loss on the global batch.
    """
    return x if world_size() == 1 else _AllMean.apply(x)


def global_moments(
    mean: Float[Tensor, "*shape"], variance: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return mean and population variance over all shares, given those of this process's."""
    if world_size() == 1:
        return mean, variance
    overall = all_mean(mean)
    return overall, all_mean(variance + (mean - overall).square())


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not grads:
        return
    flat = _mean(torch.cat([grad.flatten() for grad in grads]))
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process; all processes must call this together."""
    if world_size() == 1:
        return flag
    any_flag = torch.tensor(float(flag))
    distributed.all_reduce(any_flag, distributed.ReduceOp.MAX)
    return bool(any_flag)


def gather(value: Any) -> list[Any]:
    """Return the values of all processes by rank; all processes must call this together."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values
