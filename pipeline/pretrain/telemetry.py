"""Curves that explain a run: terms of the loss, norms, effective ranks, speed."""

import math
import time
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.pretrain.loss import noise_floor
from pipeline.pretrain.params import LossParams

CONSTANT = 1e-5  # a dimension is dead up to this deviation, relative to the largest one
TERMS = ("invariance", "redundancy")
NORMS = ("encoder_grad_norm", "projector_grad_norm", "encoder_weight_norm", "projector_weight_norm")


def effective_rank(x: Float[Tensor, "N D"]) -> float:
    """Return RankMe (Garrido et al. 2023): exp of the entropy of the singular values' shares.

    It lies between 1 and min(N, D).
    """
    values = torch.linalg.svdvals(x.float())
    share = values / values.sum() + torch.finfo(torch.float32).eps
    return float((-(share * share.log()).sum()).exp())


def dead_dimensions(x: Float[Tensor, "N D"]) -> int:
    """Return the number of dimensions with the same value for all N items."""
    spread = x.float().std(dim=0)
    return int((spread <= CONSTANT * spread.max()).sum())


@torch.no_grad()
def norms(encoder: nn.Module, projector: nn.Module) -> Float[Tensor, "4"]:
    """Return the norms of both modules' gradients, then of their weights, as in NORMS."""
    weights = [[p for p in m.parameters() if p.grad is not None] for m in (encoder, projector)]
    grads = [[p.grad for p in group if p.grad is not None] for group in weights]
    return torch.stack([_norm(group) for group in grads] + [_norm([*group]) for group in weights])


def _norm(tensors: list[Tensor]) -> Float[Tensor, ""]:
    return torch.stack([*torch._foreach_norm(tensors)]).norm()


class History:
    """Curves of a run: a row for each logged step, and one for each epoch.

    Values stay on the device until they are fetched, so that no step waits for them.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.epochs: list[dict[str, float]] = []
        self._pending: list[tuple[dict[str, float], Tensor]] = []

    def __len__(self) -> int:
        """Return the number of rows not fetched yet."""
        return len(self._pending)

    def log(self, row: dict[str, float], values: Float[Tensor, "6"]) -> None:
        """Add a step: values known to the host, and TERMS and NORMS as a tensor on the device."""
        self._pending.append((row, values))

    def fetch(self) -> None:
        """Move the logged values to the host.

        Raises:
            FloatingPointError: a loss is not finite; the message has the first such step.
        """
        if not self._pending:
            return
        values = torch.stack([tensor for _, tensor in self._pending]).tolist()
        for (row, _), numbers in zip(self._pending, values, strict=True):
            terms = dict(zip((*TERMS, *NORMS), numbers, strict=True))
            self.steps.append(row | {"loss": sum(numbers[: len(TERMS)])} | terms)
        new = self.steps[-len(self._pending) :]
        self._pending.clear()
        for row in new:
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(f"The loss is {row['loss']} since step {row['step']:.0f}")

    def table(self, params: LossParams, dim: int, batch_size: int) -> pd.DataFrame:
        """Return the steps, with the redundancy term to expect by chance (`noise_floor`)."""
        self.fetch()
        table = pd.DataFrame(self.steps)
        floor = noise_floor(params, dim, batch_size)
        table.insert(table.columns.get_loc("redundancy") + 1, "noise_floor", floor)
        return table.assign(loss_above_floor=table["loss"] - floor).astype({"step": int})

    def state_dict(self) -> dict[str, Any]:
        """Return all rows."""
        self.fetch()
        return {"steps": self.steps, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the rows of a state."""
        self.steps, self.epochs = list(state["steps"]), list(state["epochs"])


class Throughput:
    """Samples per second, and the share of time spent on waiting for data, between marks."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._mark: tuple[int, float, float] | None = None

    def mark(self, step: int, batch_size: int, waited_s: float) -> None:
        """Mark the time; the device must have finished `step` steps."""
        now = time.perf_counter()
        if self._mark is not None and step > self._mark[0] and now > self._mark[1]:
            first, began, waited_before = self._mark
            seconds = now - began
            self.rows.append(
                {
                    "step": float(step),
                    "samples_per_s": round((step - first) * batch_size / seconds, 1),
                    "wait_share": round((waited_s - waited_before) / seconds, 4),
                }
            )
        self._mark = (step, now, waited_s)

    def table(self) -> pd.DataFrame:
        """Return a row for each pair of successive marks."""
        return pd.DataFrame(self.rows, columns=["step", "samples_per_s", "wait_share"])
