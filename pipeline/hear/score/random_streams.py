"""Random numbers of the classifiers: initial weights and dropout.

Each classifier has a number that seeds its initial weights, so that they depend neither on other
classifiers nor on the device. hear-eval-kit draws for all classifiers from one stream, where the
draws of one depend on how long the others before it were trained; the distributions are the same.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.hear.score.protocol import Hyperparameters

STEPS = 2**16  # to which a dropout's probability is rounded


class RandomStreams:
    """The random numbers of one seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.masks = torch.Generator(device).manual_seed(seed)

    def weights(
        self, number: int, hparams: Hyperparameters, dim: int, classes: int
    ) -> dict[str, Tensor]:
        """Return the initial weights of one classifier, by layer.

        Xavier, with the gain of what precedes the layer: nothing or ReLU. Biases are uniform, as
        torch's default is.
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
        """Return which units dropout leaves on.

        16 random bits decide on each unit (a dropout of 0.1 is 0.100006). This takes a third of the
        time of torch's dropout.

        Args:
            numbers: of the classifiers.
            shape: of the result; G, H, B.
            dropout: probability of each classifier's units to be dropped.
            rows: of each classifier's batch, at most B.
        """
        size = math.prod(shape)
        bits = torch.empty(-(-size // 4), dtype=torch.int64, device=self.masks.device)
        bits.random_(-(2**63), None, generator=self.masks)
        dropped = ((dropout * STEPS).round() - STEPS / 2).clamp(max=STEPS / 2 - 1)
        return bits.view(torch.int16)[:size].view(shape) >= dropped.to(torch.int16)
