"""View masking against the authors' counts, its schedules written out, and known distributions."""

import math

import pytest
import torch
from torch import Generator, nn

from pipeline.config import load_config
from pipeline.encoders.build import build_encoder
from pipeline.pretrain.masking import draw_visible, mask_ratio_at

VITC = load_config().encoders.vitc
PATCHES = 24  # of 64 x 48 inputs
RATIOS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)
VISIBLE = dict(zip(RATIOS, (48, 47, 45, 43, 40, 38, 33, 24, 12), strict=True))  # of 48


def generator(seed=0):
    return Generator().manual_seed(seed)


def params(**changes):
    return VITC.model_copy(update=changes)


@pytest.mark.parametrize("ratio", VISIBLE)
def test_as_many_patches_stay_visible_as_in_the_authors_code(ratio):
    assert draw_visible(3, 48, ratio, generator()).shape == (3, VISIBLE[ratio])


def test_the_number_of_visible_patches_is_free_of_rounding_errors():
    for patches in (7, 24, 48, 100, 300):
        for hundredths in range(100):
            visible = draw_visible(0, patches, hundredths / 100, generator()).shape[1]
            assert visible == patches * (100 - hundredths) // 100


def test_each_item_draws_its_visible_patches_uniformly_and_each_at_most_once():
    visible = draw_visible(20_000, 8, 0.6, generator())  # 3 of 8
    assert (visible.diff(dim=1) > 0).all()
    combinations, counts = visible.unique(dim=0, return_counts=True)
    assert len(combinations) == math.comb(8, 3)
    assert (counts / 20_000 * 56 - 1).abs().max() < 0.2


def test_the_same_seed_leaves_the_same_patches_visible():
    assert torch.equal(
        draw_visible(4, 48, 0.5, generator(1)), draw_visible(4, 48, 0.5, generator(1))
    )


def test_a_fixed_ratio_stays():
    p = params(mask_ratio=0.3)
    assert {mask_ratio_at(p, step, 100, torch.rand(2)) for step in range(100)} == {0.3}


@pytest.mark.parametrize("schedule", ["fixed", "random", "sine"])
def test_a_ratio_of_0_masks_nothing(schedule):
    p = params(mask_ratio=0.0, mask_schedule=schedule)
    assert mask_ratio_at(p, 80, 100, torch.tensor([0.1, 0.9])) == 0


@pytest.mark.parametrize(
    ("draw", "expected"),
    [((0.0, 0.0), 0.05), ((0.499, 0.5), 0.175), ((0.1, 0.999999), 0.3), ((0.5, 0.5), 0.0)],
)
def test_random_masks_half_of_the_steps_by_a_uniform_ratio(draw, expected):
    p = params(mask_ratio=0.3, mask_schedule="random")
    assert mask_ratio_at(p, 3, 100, torch.tensor(draw)) == pytest.approx(expected, abs=1e-6)


def test_sine_starts_after_the_warm_up_and_reaches_the_ratio_with_the_last_step():
    p = params(mask_ratio=0.3, mask_schedule="sine", mask_warmup=0.2)
    for step in (0, 10, 19, 20):
        assert mask_ratio_at(p, step, 100, torch.zeros(2)) == 0
    for step in (21, 40, 60, 99, 100):
        expected = 0.3 * math.sin(math.pi / 2 * (step - 20) / 80)
        assert mask_ratio_at(p, step, 100, torch.zeros(2)) == pytest.approx(expected)
    assert mask_ratio_at(p, 60, 100, torch.zeros(2)) == pytest.approx(0.3 * math.sqrt(0.5))
    assert mask_ratio_at(p, 100, 100, torch.zeros(2)) == pytest.approx(0.3)


def encoder(name="vit", **changes):
    torch.manual_seed(0)
    small = params(size="tiny", patch_mels=16, patch_frames=8, position="learned", **changes)
    return build_encoder(name, small, n_mels=64, crop_frames=48).double().eval()


def masked_by_hand(vit, x, visible):
    """The definition: item by item, the tokens of the visible patches alone, as a sequence."""
    result = []
    for item, indices in zip(vit.stem(x), visible, strict=True):
        tokens = [vit.cls[0, 0] + vit.position[0, 0]]
        for i in indices.tolist():
            mel, time = i // 6, i % 6
            tokens.append(item[:, mel, time] + vit.position[0, 1 + i])
        out = vit.norm(nn.Sequential(*vit.blocks)(torch.stack(tokens)[None]))[0]
        result.append(out[0] if vit.pool == "cls" else out[1:].mean(dim=0))
    return torch.stack(result)


@pytest.mark.parametrize("name", ["vit", "vitc"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_masked_encoder_sees_the_visible_patches_at_their_own_positions(name, pool):
    vit = encoder(name, pool=pool)
    x = torch.randn(3, 1, 64, 48, dtype=torch.float64)
    visible = draw_visible(3, PATCHES, 0.7, generator(2))
    torch.testing.assert_close(vit(x, visible), masked_by_hand(vit, x, visible))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_mask_that_hides_nothing_changes_nothing(pool):
    vit = encoder(pool=pool)
    x = torch.randn(3, 1, 64, 48, dtype=torch.float64)
    visible = draw_visible(3, PATCHES, 0.0, generator())
    assert torch.equal(vit(x, visible), vit(x))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_hidden_patches_have_no_influence_and_no_gradient(pool):
    vit = encoder(pool=pool)
    x = torch.randn(2, 1, 64, 48, dtype=torch.float64, requires_grad=True)
    visible = draw_visible(2, PATCHES, 0.5, generator())
    y = vit(x, visible)
    y.square().sum().backward()
    changed = x.detach().clone()
    for item in range(2):
        for patch in range(PATCHES):
            rows = slice(patch // 6 * 16, patch // 6 * 16 + 16)
            columns = slice(patch % 6 * 8, patch % 6 * 8 + 8)
            seen = patch in visible[item].tolist()
            assert x.grad[item, 0, rows, columns].any() == seen
            if not seen:
                changed[item, 0, rows, columns] = 100
    assert torch.equal(vit(changed, visible), y)
