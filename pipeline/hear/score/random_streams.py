"""Random numbers of the classifiers: initial weights and dropout.

Each classifier's number seeds its initial weights, which therefore depend neither on other
classifiers nor on the device. hear-eval-kit draws for all classifiers from one stream, in which the
weights of one depend on how long earlier ones were trained; the distributions are the same.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.hear.score.protocol import Hyperparameters

STEPS = 2**16  # resolution of a dropout probability


class RandomStreams:
    """The random numbers of one seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.masks = torch.Generator(device).manual_seed(seed)

    def weights(
        self, number: int, hparams: Hyperparameters, dim: int, classes: int
    ) -> dict[str, Tensor]:
        """Return the initial weights of one classifier, by layer.

        Xavier, with a gain of 1 for the first layer and of ReLU for the others. Biases are uniform,
        as in torch's default.
        """
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        initialize = getattr(nn.init, hparams["initialization"])
        state = {}
        sizes = [dim, *[hparams["hidden_dim"]] * hparams["hidden_layers"], classes]
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            gain = nn.init.calculate_gain("relu" if layer else "linear")
            bound = 1 / math.sqrt(inputs)
            weight, bias = torch.empty(outputs, inputs), torch.empty(outputs)
            state[f"weight{layer}"] = initialize(weight, gain=gain, generator=generator)
            state[f"bias{layer}"] = bias.uniform_(-bound, bound, generator=generator)
        return state

    def dropout_mask(
        self,
        numbers: Sequence[int],
        shape: tuple[int, int, int],
        dropout: Float[Tensor, "G 1 1"],
        rows: Sequence[int],
    ) -> Bool[Tensor, "G H B"]:
        """Return which units dropout keeps.

        16 random bits decide on each unit, so a dropout of 0.1 is 0.100006; this takes a third of
        the time of torch's dropout.

        Args:
            numbers: of the classifiers.
            shape: of the result; G, H, B.
            dropout: probability that a unit of each classifier is dropped.
            rows: in each classifier's batch, at most B.
        """
        size = math.prod(shape)
        bits = torch.empty(-(-size // 4), dtype=torch.int64, device=self.masks.device)
        bits.random_(-(2**63), None, generator=self.masks)
        dropped = ((dropout * STEPS).round() - STEPS / 2).clamp(max=STEPS / 2 - 1)
        return bits.view(torch.int16)[:size].view(shape) >= dropped.to(torch.int16)
