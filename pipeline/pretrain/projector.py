"""The projector g: representation y [B, D] to embedding z (paper sections 2.1 and A.1)."""

from itertools import pairwise

from torch import nn

from pipeline.pretrain.params import ProjectorParams


def build_projector(params: ProjectorParams, in_dim: int) -> nn.Sequential:
    """Return `hidden_layers` x (Linear, BatchNorm, ReLU) and a last Linear, all without bias."""
    widths = [in_dim] + [params.hidden_dim] * params.hidden_layers
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            nn.Linear(before, after, bias=False),
            nn.BatchNorm1d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Linear(widths[-1], params.out_dim, bias=False))
