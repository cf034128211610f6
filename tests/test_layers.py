"""Combined outputs of an encoder's layers, compared with hooks on the layers."""

import pytest
import torch
from synthetic_hear import CONFIG, SMALL

from pipeline.encoders.build import build_encoder
from pipeline.hear.api import layers


def encoder_of(name, **changes):
    torch.manual_seed(0)
    params = getattr(CONFIG.encoders, name).model_copy(update=changes)
    encoder = build_encoder(name, params, n_mels=64, crop_frames=96)
    encoder.train()(2 * torch.randn(8, 1, 64, 96) + 0.5)
    return encoder.eval()


def outputs(modules, encoder, x):
    """Return the outputs of some modules in a pass of the encoder, and its own."""
    seen = []
    hooks = [module.register_forward_hook(lambda *a: seen.append(a[2])) for module in modules]
    y = encoder(x)
    for hook in hooks:
        hook.remove()
    return seen, y


@torch.no_grad()
def test_audiontts_layers_are_its_first_block_its_hidden_layer_and_y():
    encoder, x = encoder_of("audiontt", **SMALL), torch.randn(3, 1, 64, 97)
    (block, hidden), y = outputs([encoder.conv[0], encoder.mlp[1]], encoder, x)
    block = block.permute(0, 3, 2, 1).reshape(3, 48, -1)  # time, then mel, channels fastest
    expected = [part.mean(dim=1) + part.max(dim=1).values for part in (block, hidden)]
    concat = layers.represent(encoder, x, "concat")
    torch.testing.assert_close(concat, torch.cat([*expected, y], dim=1))
    assert concat.shape[1] == layers.representation_size(encoder, 64, "concat") == 4 * 32 + 16 + 80


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("name", ["vit", "vitc"])
@torch.no_grad()
def test_a_vits_layers_are_its_blocks_normed_and_pooled_like_the_last(name, pool):
    encoder, x = encoder_of(name, size="tiny", pool=pool), torch.randn(2, 1, 64, 96)
    tokens, y = outputs(encoder.blocks, encoder, x)
    normed = [encoder.norm(part) for part in tokens]
    expected = [part[:, 0] if pool == "cls" else part[:, 1:].mean(dim=1) for part in normed]
    torch.testing.assert_close(expected[-1], y)
    concat = layers.represent(encoder, x, "concat")
    torch.testing.assert_close(concat, torch.cat(expected, dim=1))
    assert (
        concat.shape[1]
        == layers.representation_size(encoder, 64, "concat")
        == 192 * len(encoder.blocks)
    )
    torch.testing.assert_close(layers.represent(encoder, x, "mean"), sum(expected) / len(expected))
    assert (
        layers.representation_size(encoder, 64, "mean")
        == layers.representation_size(encoder, 64, "last")
        == 192
    )


@torch.no_grad()
def test_the_last_layer_is_the_encoders_representation():
    encoder, x = encoder_of("audiontt", **SMALL), torch.randn(2, 1, 64, 96)
    assert torch.equal(layers.represent(encoder, x, "last"), encoder(x))
    assert layers.representation_size(encoder, 64, "last") == 80
