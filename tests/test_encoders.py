"""Encoders against their sizes in the paper and hand-written definitions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.config import load_config
from pipeline.encoders.audiontt import AudioNTT
from pipeline.encoders.build import build_encoder
from pipeline.encoders.params import AudioNTTParams, ViTParams
from pipeline.encoders.vit import Attention, sincos_position

CONFIG = load_config()
AUDIONTT = CONFIG.encoders.audiontt


def vit_params(**changes) -> ViTParams:
    base = {"size": "tiny", "patch_mels": 16, "patch_frames": 8}
    return CONFIG.encoders.vitc.model_copy(update={**base, **changes})


def small_audiontt(**changes) -> AudioNTTParams:
    small = {"channels": 4, "hidden_dim": 32, "embed_dim": 80, "dropout": 0.3}
    return AUDIONTT.model_copy(update={**small, **changes})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_audiontt_of_the_paper_has_6333376_parameters_and_3072_dimensions():
    encoder = build_encoder("audiontt", AUDIONTT, n_mels=64, crop_frames=96)
    assert count(encoder) == 6_333_376
    assert encoder(torch.randn(2, 1, 64, 96)).shape == (2, 3072)


@pytest.mark.parametrize(("embed_dim", "expected"), [(2048, 4_235_200), (1536, 3_186_112)])
def test_audiontt_sizes(embed_dim, expected):
    params = AUDIONTT.model_copy(update={"embed_dim": embed_dim})
    assert count(AudioNTT(params, n_mels=64)) == expected


def test_audiontt_cannot_be_smaller_than_its_local_features():
    with pytest.raises(ValueError, match="must exceed the 1024 local features"):
        build_encoder("audiontt", AUDIONTT.model_copy(update={"embed_dim": 1024}), 64, 96)


def test_audiontt_frames_hold_local_features_mel_bin_by_mel_bin_then_global_ones():
    encoder = AudioNTT(small_audiontt(), n_mels=64).eval()
    x = torch.randn(2, 1, 64, 96)
    frames = encoder.frame_features(encoder.conv(x))
    assert frames.shape == (2, 24, 80)
    conv = encoder.conv(x)  # [B, C, 16, 24]
    for mel, channel, frame in ((0, 0, 0), (3, 2, 7), (15, 3, 23)):
        torch.testing.assert_close(
            frames[:, frame, mel * 4 + channel], conv[:, channel, mel, frame]
        )
    torch.testing.assert_close(frames[..., 64:], encoder.mlp(frames[..., :64]))


def test_audiontt_pools_time_by_maximum_plus_mean():
    encoder = AudioNTT(small_audiontt(), n_mels=64).eval()
    x = torch.randn(3, 1, 64, 40)
    frames = encoder.frame_features(encoder.conv(x))
    expected = torch.stack([f.max(dim=0).values + f.sum(dim=0) / 10 for f in frames])
    torch.testing.assert_close(encoder(x), expected)


def test_audiontt_convolution_blocks_equal_their_definition():
    encoder = AudioNTT(small_audiontt(), n_mels=64).train()
    x = torch.randn(4, 1, 64, 96)
    h = x
    for block in encoder.conv:
        conv = block[0]
        h = functional.conv2d(h, conv.weight, conv.bias, padding=1)
        mean, variance = h.mean((0, 2, 3), True), h.var((0, 2, 3), correction=0, keepdim=True)
        h = ((h - mean) / (variance + 1e-5).sqrt()).relu()
        h = h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    torch.testing.assert_close(encoder.conv(x), h, rtol=1e-4, atol=1e-5)


def test_audiontt_has_dropout_in_training_only():
    encoder = AudioNTT(small_audiontt(), n_mels=64)
    x = torch.randn(4, 1, 64, 96)
    assert not torch.equal(encoder.train()(x), encoder(x))
    assert torch.equal(encoder.eval()(x), encoder(x))


@pytest.mark.parametrize("frames", [4, 11, 97, 1001])
def test_audiontt_takes_any_length(frames):
    encoder = AudioNTT(small_audiontt(), n_mels=64).eval()
    assert torch.isfinite(encoder(torch.randn(1, 1, 64, frames))).all()


COUNTS = {  # abt counts of the paper's models, fixed position table included
    ("vitc", "base"): [82_057_632, 82_076_064, 82_112_928, 92_695_968],
    ("vitc", "small"): [20_546_256, 20_555_472, 20_573_904, 23_211_216],
    ("vitc", "tiny"): [5_152_488, 5_157_096, 5_166_312, 5_821_416],
    ("vit", "base"): [85_264_128, 85_184_256, 85_171_968, 85_184_256],
    ("vit", "small"): [21_398_400, 21_358_464, 21_352_320, 21_358_464],
    ("vit", "tiny"): [5_390_784, 5_370_816, 5_367_744, 5_370_816],
}
PATCHES = [(16, 16), (16, 8), (8, 8), (64, 2)]


@pytest.mark.parametrize("name_size", COUNTS)
@pytest.mark.parametrize("patch", PATCHES)
def test_vit_parameter_counts_of_the_paper(name_size, patch):
    name, size = name_size
    params = vit_params(size=size, patch_mels=patch[0], patch_frames=patch[1])
    with torch.device("meta"):
        encoder = build_encoder(name, params, n_mels=64, crop_frames=96)
    assert count(encoder) + encoder.position.numel() == COUNTS[name_size][PATCHES.index(patch)]


def test_vitc_base_16x8_trains_82038432_parameters_and_vit_keeps_its_stem_frozen():
    with torch.device("meta"):
        vitc = build_encoder("vitc", vit_params(size="base"), n_mels=64, crop_frames=96)
        vit = build_encoder("vit", vit_params(size="base"), n_mels=64, crop_frames=96)
    assert sum(p.numel() for p in vitc.parameters() if p.requires_grad) == 82_038_432
    assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == 85_047_552
    assert not any(p.requires_grad for p in vit.stem.parameters())


@pytest.mark.parametrize("name", ["vit", "vitc"])
@pytest.mark.parametrize("patch", PATCHES)
def test_stems_give_one_token_per_patch_in_the_patchs_grid(name, patch):
    params = vit_params(patch_mels=patch[0], patch_frames=patch[1])
    encoder = build_encoder(name, params, n_mels=64, crop_frames=96).eval()
    grid = encoder.stem(torch.randn(2, 1, 64, 96)).shape[2:]
    assert grid == (64 // patch[0], 96 // patch[1])
    assert encoder(torch.randn(2, 1, 64, 96)).shape == (2, 192)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("crop_frames", [32, 96, 160, 320, 480])
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("position", ["sincos", "learned"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("name", ["vit", "vitc"])
def test_every_variant_of_vit_trains_all_its_parameters(name, pool, position, patch, crop_frames):
    params = vit_params(patch_mels=patch[0], patch_frames=patch[1], position=position, pool=pool)
    encoder = build_encoder(name, params, n_mels=64, crop_frames=crop_frames)
    y = encoder(torch.randn(2, 1, 64, crop_frames))
    assert y.shape == (2, 192) and y.isfinite().all()
    y.square().sum().backward()
    trained = {n for n, p in encoder.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {n for n, p in encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("size", ["base", "small", "tiny"])
@pytest.mark.parametrize("patch", PATCHES)
def test_every_size_of_vit_takes_every_patch(size, patch):
    params = vit_params(size=size, patch_mels=patch[0], patch_frames=patch[1])
    width = {"base": 768, "small": 384, "tiny": 192}[size]
    for name in ("vit", "vitc"):
        with torch.device("meta"):
            encoder = build_encoder(name, params, n_mels=64, crop_frames=480)
            y = encoder(torch.randn(2, 1, 64, 480))
        assert y.shape == (2, width)
        assert len(encoder.blocks) == (11 if name == "vitc" else 12)


@pytest.mark.parametrize("embed_dim", [65, 80, 200])
def test_the_size_of_audiontts_representation_is_free_above_its_local_features(embed_dim):
    encoder = build_encoder("audiontt", small_audiontt(embed_dim=embed_dim), 64, 96)
    assert encoder(torch.randn(2, 1, 64, 96)).shape == (2, embed_dim)
    with pytest.raises(ValueError, match="must exceed the 64 local features"):
        build_encoder("audiontt", small_audiontt(embed_dim=64), 64, 96)


def test_a_mask_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mask_ratio = 0\.99 leaves none of the 48 patches"):
        build_encoder("vitc", vit_params(mask_ratio=0.99), n_mels=64, crop_frames=96)


def test_a_patch_that_does_not_tile_the_input_is_refused():
    with pytest.raises(ValueError, match="do not tile an input"):
        build_encoder("vitc", vit_params(), n_mels=64, crop_frames=100)


def test_sincos_codes_time_in_the_first_half_and_frequency_in_the_second():
    code = sincos_position(16, mel_patches=3, time_patches=5)
    assert code.shape == (1, 1 + 15, 16)
    assert not code[0, 0].any()  # CLS
    for mel in range(3):
        for time in range(5):
            row = code[0, 1 + mel * 5 + time]
            for half, position in ((0, time), (8, mel)):
                for k in range(4):
                    angle = position * 10_000 ** (-k / 4)
                    assert row[half + k] == pytest.approx(math.sin(angle), abs=1e-6)
                    assert row[half + 4 + k] == pytest.approx(math.cos(angle), abs=1e-6)


def test_attention_equals_torchs_multi_head_attention_without_key_bias():
    attention = Attention(dim=12, heads=3)
    nn.init.normal_(attention.q_bias)
    nn.init.normal_(attention.v_bias)
    reference = nn.MultiheadAttention(12, 3, batch_first=True)
    reference.in_proj_weight.data = attention.qkv.weight.data
    bias = torch.cat([attention.q_bias, torch.zeros(12), attention.v_bias])
    reference.in_proj_bias.data = bias.data
    reference.out_proj.load_state_dict(attention.out.state_dict())
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(attention(x), reference(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_vit_pools_the_cls_token_or_the_mean_of_the_patches(pool):
    encoder = build_encoder("vit", vit_params(pool=pool), n_mels=64, crop_frames=96).eval()
    normed = []
    encoder.norm.register_forward_hook(lambda module, args, out: normed.append(out))
    y = encoder(torch.randn(2, 1, 64, 96))
    tokens = normed[0]
    assert tokens.shape == (2, 1 + 48, 192)
    torch.testing.assert_close(y, tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1))


def test_learned_positions_are_trained_and_fixed_ones_are_not():
    learned = build_encoder("vitc", vit_params(position="learned"), n_mels=64, crop_frames=96)
    fixed = build_encoder("vitc", vit_params(), n_mels=64, crop_frames=96)
    assert "position" in dict(learned.named_parameters())
    assert "position" not in dict(fixed.named_parameters())
    assert "position" in fixed.state_dict()


def test_linear_layers_start_xavier_uniform_with_zero_biases():
    encoder = build_encoder("vitc", vit_params(), n_mels=64, crop_frames=96)
    weight = encoder.blocks[0].mlp[0].weight.detach()
    bound = math.sqrt(6 / (192 + 768))
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not encoder.blocks[0].mlp[0].bias.any()
