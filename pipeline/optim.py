"""Optimizers, parameter groups and the learning-rate schedule (paper section A.1, report p. 33)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pipeline.params.method import AdamWParams, LarsParams, PretrainParams

REFERENCE_BATCH = 128  # batch size that the learning rates are given for
FINAL_FACTOR = 0.001  # where the cosine ends


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017) as Barlow Twins uses it.

    Groups with `adapt` have weight decay and the trust ratio
    trust_coefficient * |w| / |g + weight_decay * w|, which is 1 where a norm is 0.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], params: LarsParams) -> None:
        defaults = {
            "lr": params.lr,
            "momentum": params.momentum,
            "weight_decay": params.weight_decay,
            "trust_coefficient": params.trust_coefficient,
            "adapt": True,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates: list[Tensor] = [p.grad for p in weights]
            if group["adapt"]:
                updates = _adapted(updates, weights, group)
            buffers = [self._buffer(p) for p in weights]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(weights, buffers, alpha=-group["lr"])

    def _buffer(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum"]
        return buffer


def _adapted(grads: list[Tensor], weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Gradients with weight decay, each scaled by its trust ratio."""
    grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
    norms = zip(torch._foreach_norm(weights), torch._foreach_norm(grads), strict=True)
    ratios = [
        torch.where((w > 0) & (g > 0), group["trust_coefficient"] * w / g, 1.0) for w, g in norms
    ]
    return list(torch._foreach_mul(grads, ratios))


def build_optimizer(model: nn.Module, params: LarsParams | AdamWParams) -> Optimizer:
    """Return the optimizer with its two groups: matrices, and vectors (biases, norms)."""
    weights = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in weights if p.ndim > 1]
    vectors = [p for p in weights if p.ndim <= 1]
    groups: list[dict[str, Any]]
    if isinstance(params, LarsParams):
        groups = [
            {"params": matrices},
            {"params": vectors, "lr": params.lr_biases, "adapt": False},
        ]
        optimizer: Optimizer = Lars(groups, params)
    else:
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = AdamW(
            groups,
            lr=params.lr,
            betas=(params.beta1, params.beta2),
            weight_decay=params.weight_decay,
        )
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def lr_factor(step: int, steps_per_epoch: int, params: PretrainParams) -> float:
    """Multiplier of every learning rate at a step: linear warm-up, then cosine or constant.

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
        group["lr"] = group["base_lr"] * factor
