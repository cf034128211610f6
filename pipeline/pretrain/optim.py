"""Optimizers, parameter groups and the learning-rate schedule (paper section A.1, report p. 33)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pipeline.encoders.params import OptimizerParams
from pipeline.pretrain.params import PretrainParams

REFERENCE_BATCH = 128  # batch size to which the learning rates refer
FINAL_FACTOR = 0.001  # at the end of the cosine


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017) as Barlow Twins uses it.

    Groups with `adapt` have weight decay and the trust ratio
    trust_coefficient * |w| / |g + weight_decay * w|, which is 1 where a norm is 0.
    """

    update: Callable[..., None]  # `lars_update`, compiled on a GPU

    def __init__(self, groups: Iterable[dict[str, Any]], params: OptimizerParams) -> None:
        defaults = {
            "lr": params.lr,
            "momentum": params.momentum,
            "weight_decay": params.weight_decay,
            "trust_coefficient": params.trust_coefficient,
            "adapt": True,
        }
        super().__init__(groups, defaults)
        on_gpu = self.param_groups[0]["params"][0].is_cuda
        self.update = lars_update
        if on_gpu:
            self.update = torch.compile(lars_update, options={"combo_kernels": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            grads: list[Tensor] = [p.grad for p in weights]
            buffers = [self._buffer(p) for p in weights]
            self.update(
                weights,
                grads,
                buffers,
                group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                trust_coefficient=group["trust_coefficient"] if group["adapt"] else None,
            )

    def _buffer(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum"]
        return buffer


def lars_update(
    weights: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    lr: Tensor | float,
    *,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float | None,
) -> None:
    """Update weights and momentum in place; without a coefficient, there is no trust ratio."""
    for weight, grad, buffer in zip(weights, grads, buffers, strict=True):
        if trust_coefficient is not None:
            grad = grad + weight_decay * weight
            w, g = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(grad)
            grad = grad * torch.where((w > 0) & (g > 0), trust_coefficient * w / g, 1.0)
        buffer.mul_(momentum).add_(grad)
        weight.sub_(lr * buffer)


def build_optimizer(model: nn.Module, params: OptimizerParams) -> Optimizer:
    """Return the optimizer with two groups: matrices, and vectors (biases, norms).

    Only matrices, which include the CLS token and learned positions, have weight decay. Learning
    rates are tensors on the model's device, so that they can change in a captured step.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    matrices: dict[str, Any] = {"params": [p for p in weights if p.ndim > 1]}
    vectors: dict[str, Any] = {"params": [p for p in weights if p.ndim <= 1]}
    if params.name == "lars":
        vectors |= {"lr": params.lr_biases, "adapt": False}
        optimizer: Optimizer = Lars([matrices, vectors], params)
    else:
        vectors |= {"weight_decay": 0.0}
        optimizer = _torch_optimizer([matrices, vectors], params, on_gpu=weights[0].is_cuda)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
        group["lr"] = torch.tensor(group["lr"], device=weights[0].device)
    return optimizer


def _torch_optimizer(
    groups: list[dict[str, Any]], params: OptimizerParams, on_gpu: bool
) -> Optimizer:
    """Return AdamW with decoupled weight decay, or Adam or SGD with decay in the gradient."""
    decay = params.weight_decay
    if params.name == "sgd":
        return SGD(groups, params.lr, params.momentum, weight_decay=decay, fused=on_gpu)
    betas = (params.beta1, params.beta2)
    adam = AdamW if params.name == "adamw" else Adam
    return adam(groups, params.lr, betas, weight_decay=decay, fused=on_gpu, capturable=on_gpu)


def lr_factor(step: int, steps_per_epoch: int, params: PretrainParams) -> float:
    """Return every learning rate's multiplier at a step: linear warm-up, then cosine or constant.

    It includes the scaling by batch_size / 128. The first step of a warm-up has rate 0.
    """
    scale = params.batch_size / REFERENCE_BATCH
    warmup_steps = params.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return scale * step / warmup_steps
    if params.schedule == "constant":
        return scale
    horizon = params.cosine_horizon * params.epochs * steps_per_epoch
    progress = min(1.0, (step - warmup_steps) / max(1.0, horizon - warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return scale * (FINAL_FACTOR + (1 - FINAL_FACTOR) * cosine)


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base times `factor`."""
    for group in optimizer.param_groups:
        group["lr"].fill_(group["base_lr"] * factor)
