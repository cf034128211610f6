"""Classifiers of one shape as one module: weights [G, out, in], activations [G, units, rows].

A classifier is, for each hidden layer, a linear map, batch norm, dropout and ReLU, and then a last
linear map. With rows as the last dimension, batch norm of all classifiers is one call of torch's
for G * H channels, and a first layer that all apply to the same rows is one matrix product.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.hear.score.batches import Batch
from pipeline.hear.score.protocol import Conf
from pipeline.hear.score.random_streams import Draws

EPS, MOMENTUM = 1e-5, 0.1  # torch's defaults of batch norm
STATISTICS = ("mean", "variance")  # of batch norm; all other tensors are learned
State = dict[str, Tensor]  # of one classifier


def initial_state(
    draws: Draws, number: int, conf: Conf, dim: int, classes: int, dtype: torch.dtype
) -> State:
    """Return a classifier before training; its batch norms are those of torch."""
    state = draws.weights(number, conf, dim, classes)
    for layer in range(conf["hidden_layers"]):
        state[f"gain{layer}"] = torch.ones(conf["hidden_dim"])
        state[f"shift{layer}"] = torch.zeros(conf["hidden_dim"])
        state[f"mean{layer}"] = torch.zeros(conf["hidden_dim"])
        state[f"variance{layer}"] = torch.ones(conf["hidden_dim"])
    return {name: tensor.to(dtype) for name, tensor in state.items()}


class Stack:
    """Classifiers with equal numbers of layers and units."""

    def __init__(
        self, numbers: Sequence[int], confs: Sequence[Conf], tensors: dict[str, Tensor]
    ) -> None:
        """Take classifiers over.

        Args:
            numbers: names of the classifiers in `Draws`.
            tensors: of all classifiers, the first dimension is G.
        """
        self.numbers = list(numbers)
        self.confs = list(confs)
        self.layers = int(confs[0]["hidden_layers"])
        self.tensors = tensors
        self.learned = [name for name in tensors if not name.startswith(STATISTICS)]
        like = tensors["bias0"]
        self.dropout = like.new_tensor([conf["dropout"] for conf in confs])[:, None, None]
        self.drops = any(conf["dropout"] for conf in confs)

    @classmethod
    def of(
        cls,
        numbers: Sequence[int],
        confs: Sequence[Conf],
        states: Sequence[State],
        device: torch.device,
    ) -> "Stack":
        """Return classifiers as one."""
        names = list(states[0])
        tensors = {name: torch.stack([s[name] for s in states]).to(device) for name in names}
        return cls(numbers, confs, tensors)

    def some(self, members: Sequence[int]) -> "Stack":
        """Return some of the classifiers, by their places; all are returned as they are."""
        if list(members) == list(range(len(self.confs))):
            return self
        index = torch.tensor(members, device=self.dropout.device)
        tensors = {name: tensor.detach()[index] for name, tensor in self.tensors.items()}
        return Stack([self.numbers[m] for m in members], [self.confs[m] for m in members], tensors)

    def state(self, member: int) -> State:
        """Return a copy of one classifier."""
        return {name: tensor.detach()[member].clone() for name, tensor in self.tensors.items()}

    def logits(
        self,
        x: Float[Tensor, "B D"] | Float[Tensor, "G B D"],
        batch: Batch | None = None,
        draws: Draws | None = None,
    ) -> Float[Tensor, "G C B"]:
        """Return the logits of rows: as in training of the batch that they are, with its draws."""
        h = x.transpose(-1, -2)
        for layer in range(self.layers + 1):
            weight, bias = self.tensors[f"weight{layer}"], self.tensors[f"bias{layer}"][..., None]
            h = torch.matmul(weight, h) + bias if h.dim() == 2 else torch.baddbmm(bias, weight, h)
            if layer < self.layers:
                if batch is None or batch.weight is None:
                    h = self._batch_norm(h, layer, training=batch is not None)
                else:
                    h = self._batch_norm_padded(h, layer, batch.weight)
                if batch is not None and draws is not None and self.drops:
                    kept = draws.kept(self.numbers, (*h.shape,), self.dropout, batch.counts)
                    h = h * (kept.to(h.dtype) / (1 - self.dropout))  # no mul_: h is a view
                h = h.relu_()
        return h

    def _batch_norm(
        self, h: Float[Tensor, "G H B"], layer: int, training: bool
    ) -> Float[Tensor, "G H B"]:
        names = [f"{name}{layer}" for name in ("mean", "variance", "gain", "shift")]
        mean, variance, gain, shift = (self.tensors[name].view(-1) for name in names)
        flat = h.reshape(1, -1, h.shape[2])
        found = F.batch_norm(flat, mean, variance, gain, shift, training, MOMENTUM, EPS)
        return found.view(h.shape)

    def _batch_norm_padded(
        self, h: Float[Tensor, "G H B"], layer: int, weight: Float[Tensor, "G 1 B"]
    ) -> Float[Tensor, "G H B"]:
        """Batch norm in training, by the rows that are no padding."""
        mean = (h * weight).sum(2, keepdim=True)
        centred = h - mean
        variance = (centred.square() * weight).sum(2, keepdim=True)
        with torch.no_grad():
            share = weight.amax(2)  # 1 / rows; 0: there are none, and nothing is learned
            momentum = MOMENTUM * (share > 0).to(h.dtype)
            unbiased = variance[..., 0] / (1 - share)
            self.tensors[f"mean{layer}"].lerp_(mean[..., 0], momentum)
            self.tensors[f"variance{layer}"].lerp_(unbiased, momentum)
        gain, shift = (self.tensors[f"{name}{layer}"][..., None] for name in ("gain", "shift"))
        return centred * (variance + EPS).rsqrt() * gain + shift


class StackAdam:
    """Adam for a stack: torch's own, with each classifier's part of a tensor as a parameter."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        for name in stack.learned:
            stack.tensors[name].requires_grad_()
        self.parts = [
            [stack.tensors[name].detach()[g] for name in stack.learned]
            for g in range(len(stack.confs))
        ]
        pairs = zip(self.parts, stack.confs, strict=True)
        groups = [{"params": parts, "lr": conf["lr"]} for parts, conf in pairs]
        self.adam = torch.optim.Adam(groups, fused=True)

    def of_some(self, members: Sequence[int]) -> "StackAdam":
        """Return the optimizer of some of the classifiers, by their places, where it is."""
        found = StackAdam(self.stack.some(members))
        for parts, member in zip(found.parts, members, strict=True):
            for part, was in zip(parts, self.parts[member], strict=True):
                found.adam.state[part] = self.adam.state[was]
        return found

    def step(self, batch: Batch, multiclass: bool, draws: Draws) -> None:
        """Let each classifier that has rows take one step."""
        loss = row_losses(self.stack.logits(batch.x, batch, draws), batch.target, multiclass)
        each = loss.mean(1) if batch.weight is None else (loss * batch.weight[:, 0]).sum(1)
        each.sum().backward()  # the sum keeps the classifiers' gradients apart
        for place, name in enumerate(self.stack.learned):
            tensor = self.stack.tensors[name]
            assert tensor.grad is not None
            for parts, count, gradient in zip(self.parts, batch.counts, tensor.grad, strict=True):
                parts[place].grad = gradient if count else None
            tensor.grad = None
        self.adam.step()


def row_losses(logits: Float[Tensor, "G C B"], target: Tensor, multiclass: bool) -> Tensor:
    """Return the loss of each row [G, B]: cross-entropy, or binary, averaged over the classes.

    Args:
        target: index of the class [B] or [G, B]; of binary losses, which classes a row has,
            [B, C] or [G, B, C].
    """
    if multiclass:
        wanted = target.expand(len(logits), -1)
        return F.cross_entropy(logits, wanted, reduction="none")
    wanted = target.transpose(-1, -2).to(logits.dtype).expand(logits.shape)
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
