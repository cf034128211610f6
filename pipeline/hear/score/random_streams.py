"""What is drawn at random for classifiers: initial weights and dropout.

Each classifier is named by a number, which its initial weights are drawn with, so that they depend
neither on the others nor on the device. hear-eval-kit draws for one classifier after the other from
one stream, so that a classifier's draws depend on how long the ones before it were trained; the
distributions are the same.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.hear.score.protocol import Conf

STEPS = 2**16  # of a dropout's probability


class Draws:
    """Draws that one seed makes."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.masks = torch.Generator(device).manual_seed(seed)

    def weights(self, number: int, conf: Conf, dim: int, classes: int) -> dict[str, Tensor]:
        """Return the initial weights of one classifier, by layer.

        Xavier with the gain of what comes before the layer: nothing or ReLU. Biases are uniform,
        which is torch's default.
        """
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        initialize = getattr(nn.init, conf["initialization"])
        found = {}
        sizes = [dim, *[conf["hidden_dim"]] * conf["hidden_layers"], classes]
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            gain = nn.init.calculate_gain("relu" if layer else "linear")
            bound = 1 / math.sqrt(inputs)
            weight, bias = torch.empty(outputs, inputs), torch.empty(outputs)
            found[f"weight{layer}"] = initialize(weight, gain=gain, generator=generator)
            found[f"bias{layer}"] = bias.uniform_(-bound, bound, generator=generator)
        return found

    def kept(
        self,
        numbers: Sequence[int],
        shape: tuple[int, int, int],
        dropout: Float[Tensor, "G 1 1"],
        rows: Sequence[int],
    ) -> Bool[Tensor, "G H B"]:
        """Return which units dropout keeps.

        16 random bits decide on each (a dropout of 0.1 is 0.100006), which takes a third of the
        time of torch's.

        Args:
            numbers: the classifiers.
            shape: of the result; G, H, B.
            dropout: probability of each classifier's units to be dropped.
            rows: of the batch of each classifier; at most B.
        """
        size = math.prod(shape)
        bits = torch.empty(-(-size // 4), dtype=torch.int64, device=self.masks.device)
        bits.random_(-(2**63), None, generator=self.masks)
        dropped = ((dropout * STEPS).round() - STEPS / 2).clamp(max=STEPS / 2 - 1)
        return bits.view(torch.int16)[:size].view(shape) >= dropped.to(torch.int16)
