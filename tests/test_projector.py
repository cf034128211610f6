"""The projector against its sizes and its definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.pretrain.params import ProjectorParams
from pipeline.pretrain.projector import build_projector


@pytest.mark.parametrize(
    ("in_dim", "out_dim", "expected"),
    [
        (3072, 256, 27_279_360),
        (3072, 1048, 33_767_424),
        (768, 256, 8_404_992),
        (768, 1048, 14_893_056),
    ],
)
def test_parameter_counts_of_the_paper(in_dim, out_dim, expected):
    params = ProjectorParams(hidden_layers=1, hidden_dim=8192, out_dim=out_dim)
    with torch.device("meta"):
        projector = build_projector(params, in_dim)
    assert sum(p.numel() for p in projector.parameters()) == expected


def test_equals_linear_batch_norm_relu_linear_without_biases():
    params = ProjectorParams(hidden_layers=1, hidden_dim=8, out_dim=4)
    projector = build_projector(params, in_dim=6)
    y = torch.randn(16, 6)
    first, norm, _, last = projector
    h = functional.linear(y, first.weight)
    h = (h - h.mean(0)) / (h.var(0, correction=0) + norm.eps).sqrt()
    expected = functional.linear(h.relu(), last.weight)
    torch.testing.assert_close(projector(y), expected, rtol=1e-4, atol=1e-5)
    assert first.bias is None and last.bias is None


@pytest.mark.parametrize("hidden_layers", [0, 2, 3])
def test_number_of_hidden_layers(hidden_layers):
    params = ProjectorParams(hidden_layers=hidden_layers, hidden_dim=8, out_dim=4)
    projector = build_projector(params, in_dim=6)
    linear = [m for m in projector if isinstance(m, nn.Linear)]
    assert len(linear) == hidden_layers + 1
    assert linear[0].in_features == 6 and linear[-1].out_features == 4
