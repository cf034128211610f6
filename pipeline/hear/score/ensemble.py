"""Classifiers of one shape as one module: weights [G, out, in], activations [G, units, rows].

A classifier is a multilayer perceptron: each hidden layer is linear, batch norm, dropout and ReLU;
the last layer is linear. With rows as the last dimension, the batch norms of all classifiers are
one call on G * H channels, and a first layer on shared rows is one matrix product.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.hear.score.batches import Batch
from pipeline.hear.score.protocol import Hyperparameters
from pipeline.hear.score.random_streams import RandomStreams

EPS, MOMENTUM = 1e-5, 0.1  # torch's defaults of batch norm
STATISTICS = ("mean", "variance")  # of batch norm; all other tensors are learned
State = dict[str, Tensor]  # of one classifier


def initial_state(
    streams: RandomStreams,
    number: int,
    hparams: Hyperparameters,
    dim: int,
    classes: int,
    dtype: torch.dtype,
) -> State:
    """Return a classifier before training, its batch norms initialized as torch's."""
    state = streams.weights(number, hparams, dim, classes)
    for layer in range(hparams["hidden_layers"]):
        state[f"gain{layer}"] = torch.ones(hparams["hidden_dim"])
        state[f"shift{layer}"] = torch.zeros(hparams["hidden_dim"])
        state[f"mean{layer}"] = torch.zeros(hparams["hidden_dim"])
        state[f"variance{layer}"] = torch.ones(hparams["hidden_dim"])
    return {name: tensor.to(dtype) for name, tensor in state.items()}


class MLPEnsemble:
    """Classifiers with equal numbers of layers and units."""

    def __init__(
        self, numbers: Sequence[int], grid: Sequence[Hyperparameters], tensors: dict[str, Tensor]
    ) -> None:
        """Combine classifiers.

        Args:
            numbers: which of the random streams each one uses.
            tensors: weights and statistics by name; their first dimension is G.
        """
        self.numbers = list(numbers)
        self.grid = list(grid)
        self.layers = int(grid[0]["hidden_layers"])
        self.tensors = tensors
        self.learned = [name for name in tensors if not name.startswith(STATISTICS)]
        like = tensors["bias0"]
        self.dropout = like.new_tensor([hparams["dropout"] for hparams in grid])[:, None, None]
        self.drops = any(hparams["dropout"] for hparams in grid)

    @classmethod
    def from_states(
        cls,
        numbers: Sequence[int],
        grid: Sequence[Hyperparameters],
        states: Sequence[State],
        device: torch.device,
    ) -> "MLPEnsemble":
        """Return an ensemble of classifiers, given the state of each."""
        names = list(states[0])
        tensors = {name: torch.stack([s[name] for s in states]).to(device) for name in names}
        return cls(numbers, grid, tensors)

    def subset(self, members: Sequence[int]) -> "MLPEnsemble":
        """Return the ensemble of some of the classifiers, or itself if they are all."""
        if list(members) == list(range(len(self.grid))):
            return self
        index = torch.tensor(members, device=self.dropout.device)
        tensors = {name: tensor.detach()[index] for name, tensor in self.tensors.items()}
        return MLPEnsemble(
            [self.numbers[m] for m in members], [self.grid[m] for m in members], tensors
        )

    def state(self, member: int) -> State:
        """Return a copy of one classifier."""
        return {name: tensor.detach()[member].clone() for name, tensor in self.tensors.items()}

    def logits(
        self,
        x: Float[Tensor, "B D"] | Float[Tensor, "G B D"],
        batch: Batch | None = None,
        streams: RandomStreams | None = None,
    ) -> Float[Tensor, "G C B"]:
        """Return the logits of rows; with a batch and streams, as in training on that batch."""
        h = x.transpose(-1, -2)
        for layer in range(self.layers + 1):
            weight, bias = self.tensors[f"weight{layer}"], self.tensors[f"bias{layer}"][..., None]
            h = torch.matmul(weight, h) + bias if h.dim() == 2 else torch.baddbmm(bias, weight, h)
            if layer < self.layers:
                if batch is None or batch.weight is None:
                    h = self._batch_norm(h, layer, training=batch is not None)
                else:
                    h = self._batch_norm_padded(h, layer, batch.weight)
                if batch is not None and streams is not None and self.drops:
                    mask = streams.dropout_mask(
                        self.numbers, (*h.shape,), self.dropout, batch.counts
                    )
                    h = h * (mask.to(h.dtype) / (1 - self.dropout))  # not mul_: h is a view
                h = h.relu_()
        return h

    def _batch_norm(
        self, h: Float[Tensor, "G H B"], layer: int, training: bool
    ) -> Float[Tensor, "G H B"]:
        names = [f"{name}{layer}" for name in ("mean", "variance", "gain", "shift")]
        mean, variance, gain, shift = (self.tensors[name].view(-1) for name in names)
        flat = h.reshape(1, -1, h.shape[2])
        normalized = F.batch_norm(flat, mean, variance, gain, shift, training, MOMENTUM, EPS)
        return normalized.view(h.shape)

    def _batch_norm_padded(
        self, h: Float[Tensor, "G H B"], layer: int, weight: Float[Tensor, "G 1 B"]
    ) -> Float[Tensor, "G H B"]:
        """Batch norm in training, over the rows that are not padding."""
        mean = (h * weight).sum(2, keepdim=True)
        centered = h - mean
        variance = (centered.square() * weight).sum(2, keepdim=True)
        with torch.no_grad():
            share = weight.amax(2)  # 1 / rows; 0 if there are none, which updates nothing
            momentum = MOMENTUM * (share > 0).to(h.dtype)
            unbiased = variance[..., 0] / (1 - share)
            self.tensors[f"mean{layer}"].lerp_(mean[..., 0], momentum)
            self.tensors[f"variance{layer}"].lerp_(unbiased, momentum)
        gain, shift = (self.tensors[f"{name}{layer}"][..., None] for name in ("gain", "shift"))
        return centered * (variance + EPS).rsqrt() * gain + shift


class EnsembleAdam:
    """torch's Adam for an ensemble: each classifier's slice of a tensor is a parameter."""

    def __init__(self, ensemble: MLPEnsemble) -> None:
        self.ensemble = ensemble
        for name in ensemble.learned:
            ensemble.tensors[name].requires_grad_()
        self.parts = [
            [ensemble.tensors[name].detach()[g] for name in ensemble.learned]
            for g in range(len(ensemble.grid))
        ]
        pairs = zip(self.parts, ensemble.grid, strict=True)
        groups = [{"params": parts, "lr": hparams["lr"]} for parts, hparams in pairs]
        self.adam = torch.optim.Adam(groups, fused=True)

    def subset(self, members: Sequence[int]) -> "EnsembleAdam":
        """Return the optimizer of some of the classifiers, with its state."""
        optimizer = EnsembleAdam(self.ensemble.subset(members))
        for parts, member in zip(optimizer.parts, members, strict=True):
            for part, was in zip(parts, self.parts[member], strict=True):
                optimizer.adam.state[part] = self.adam.state[was]
        return optimizer

    def step(self, batch: Batch, multiclass: bool, streams: RandomStreams) -> None:
        """Update each classifier that has rows."""
        loss = row_losses(self.ensemble.logits(batch.x, batch, streams), batch.target, multiclass)
        each = loss.mean(1) if batch.weight is None else (loss * batch.weight[:, 0]).sum(1)
        each.sum().backward()  # of a sum: each classifier gets its own gradients
        for position, name in enumerate(self.ensemble.learned):
            tensor = self.ensemble.tensors[name]
            assert tensor.grad is not None
            for parts, count, gradient in zip(self.parts, batch.counts, tensor.grad, strict=True):
                parts[position].grad = gradient if count else None
            tensor.grad = None
        self.adam.step()


def row_losses(logits: Float[Tensor, "G C B"], target: Tensor, multiclass: bool) -> Tensor:
    """Return the loss of each row [G, B]: cross-entropy, or binary, averaged over the classes.

    Args:
        target: classes as indices [B] or [G, B], or for binary losses as 0 and 1 [B, C] or
            [G, B, C].
    """
    if multiclass:
        classes = target.expand(len(logits), -1)
        return F.cross_entropy(logits, classes, reduction="none")
    classes = target.transpose(-1, -2).to(logits.dtype).expand(logits.shape)
    return F.binary_cross_entropy_with_logits(logits, classes, reduction="none").mean(dim=1)
