"""Views against torch's own interpolation, hand-written definitions and known distributions."""

import math

import pytest
import torch
from torch import Generator
from torch.nn import functional

from pipeline.config import load_config
from pipeline.pretrain.augment import (
    Views,
    _draw_box,
    draw_noise,
    mix_noise,
    mixup,
    random_linear_fader,
    random_resize_crop,
    resize_weights,
    standardize,
)

PAPER = load_config().augment
SCALES = [0.6, 1.5]


def generator(seed=0):
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("frames", [32, 96, 480])
def test_resize_crop_equals_interpolate_on_the_canvas(seed, frames):
    g = generator(seed)
    x = torch.randn(1, 64, frames, generator=g)
    sizes, canvases = (64, frames), (64, frames * 3 // 2)
    boxes = [_draw_box(1, *s, SCALES, g) for s in zip(sizes, canvases, strict=True)]
    (i, h), (j, w) = [(int(start), int(length)) for start, length in boxes]
    canvas = torch.zeros(1, 1, 64, frames * 3 // 2)
    canvas[0, 0, :, frames // 4 : frames // 4 + frames] = x[0]
    crop = canvas[..., i : i + h, j : j + w]
    expected = functional.interpolate(crop, sizes, mode="bicubic", align_corners=True)[0]
    weights = [
        resize_weights(*box, size, canvas)
        for box, size, canvas in zip(boxes, sizes, canvases, strict=True)
    ]
    actual = weights[0] @ x @ weights[1].transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-5)


def test_random_resize_crop_draws_both_boxes_and_applies_them():
    x = torch.randn(3, 64, 96)
    g = generator(5)
    mel_scale, frame_scale = [0.5, 0.7], [0.9, 1.4]
    boxes = [_draw_box(3, 64, 64, mel_scale, g), _draw_box(3, 96, 144, frame_scale, g)]
    mel = resize_weights(*boxes[0], 64, 64)
    frame = resize_weights(*boxes[1], 96, 144)
    expected = torch.stack([mel[b] @ x[b] @ frame[b].T for b in range(3)])
    params = PAPER.model_copy(update={"rrc_mel_scale": mel_scale, "rrc_frame_scale": frame_scale})
    torch.testing.assert_close(random_resize_crop(x, params, generator(5)), expected)


def test_a_box_as_large_as_the_input_on_no_canvas_changes_nothing():
    params = PAPER.model_copy(
        update={
            "rrc_mel_scale": [1.0, 1.0],
            "rrc_frame_scale": [1.0, 1.0],
            "rrc_canvas_frames": 1.0,
        }
    )
    x = torch.randn(4, 64, 96)
    torch.testing.assert_close(random_resize_crop(x, params, generator()), x, rtol=0, atol=1e-5)


def test_boxes_have_the_papers_distribution():
    start, length = _draw_box(40_000, 64, 64, PAPER.rrc_mel_scale, generator())
    assert (length == 64).double().mean() == pytest.approx(0.556, abs=0.01)
    assert length.min() == 38
    start, length = _draw_box(40_000, 96, 144, PAPER.rrc_frame_scale, generator())
    assert (int(length.min()), int(length.max())) == (57, 143)
    assert (start >= 0).all() and (start + length <= 144).all()
    narrow = length == 100
    assert start[narrow].min() == 0 and start[narrow].max() == 44


def test_mixup_mixes_exponentials_item_by_item():
    x, z = torch.randn(2, 3, 4, 5).unbind()
    weight = torch.tensor([0.0, 0.1, 0.2])
    mixed = mixup(x, z, weight)
    for b, f, t in ((1, 0, 0), (1, 3, 4), (2, 2, 1)):
        a = float(weight[b])
        expected = math.log(
            (1 - a) * math.exp(x[b, f, t]) + a * math.exp(z[b, f, t]) + 1.1920929e-7
        )
        assert float(mixed[b, f, t]) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(mixed[0], x[0])


def test_fader_adds_one_straight_line_over_time_to_all_mel_bins():
    x = torch.zeros(500, 8, 96)
    line = random_linear_fader(x, gain=1.0, generator=generator())
    assert torch.equal(line[:, :1].expand_as(line), line)
    torch.testing.assert_close(line.diff(n=2, dim=2), torch.zeros(500, 8, 94), rtol=0, atol=1e-5)
    ends = line[:, 0, [0, -1]]
    assert ends.abs().max() <= 1.0
    assert ends.mean().abs() < 0.05 and float(ends.std()) == pytest.approx(
        1 / math.sqrt(3), rel=0.05
    )
    assert torch.corrcoef(ends.T)[0, 1].abs() < 0.1  # head and tail are independent


def views(**changes):
    return Views(PAPER.model_copy(update=changes), 64, 96, generator())


def test_the_two_views_are_drawn_independently():
    x = torch.randn(8, 64, 96)
    view_1, view_2 = views()(x, torch.arange(8))
    assert not any(torch.allclose(a, b) for a, b in zip(view_1, view_2, strict=True))


def test_every_item_draws_for_itself():
    x = torch.randn(1, 64, 96).expand(8, -1, -1)
    view, _ = views()(x, torch.arange(8))
    assert not any(torch.allclose(view[0], other) for other in view[1:])


OFF = {"mixup": False, "rrc": False, "rlf": False}


@pytest.mark.parametrize(
    ("switch", "on"),
    [
        ("mixup", True),
        ("noise", "additive"),
        ("noise", "reference"),
        ("rrc", True),
        ("rlf", True),
        ("pre_post_norm", True),
    ],
)
def test_each_augmentation_can_be_switched_off_and_alone_changes_the_view(switch, on):
    x, clip = torch.randn(4, 64, 96), torch.arange(4)
    assert torch.equal(views(**OFF)(x, clip)[0], x)
    only = views(**{**OFF, switch: on})
    only(x.flip(0), clip.flip(0) + 10)  # gives Mixup a background
    assert not torch.allclose(only(x, clip)[0], x)


def test_mixup_leaves_the_first_batch_unmixed_since_the_bank_is_empty():
    x = torch.randn(4, 64, 96)
    only_mixup = views(rrc=False, rlf=False)
    assert torch.equal(only_mixup(x, torch.arange(4))[0], x)


def test_background_is_never_from_the_clip_itself():
    only_mixup = views(rrc=False, rlf=False, mixup_bank=8)
    only_mixup(torch.full((4, 64, 96), 50.0), torch.zeros(4, dtype=torch.long))
    only_mixup(torch.full((4, 64, 96), -50.0), torch.ones(4, dtype=torch.long))
    x = torch.zeros(64, 64, 96)
    mixed = torch.cat(only_mixup(x, torch.zeros(64, dtype=torch.long)))
    assert mixed.max() <= 0  # clip 0 only ever meets clip 1, which is quiet
    assert mixed.min() >= math.log(1 - 0.2) - 1e-5


def test_background_is_drawn_from_all_other_clips_in_the_bank():
    only_mixup = views(rrc=False, rlf=False, mixup_bank=6)
    only_mixup(torch.zeros(6, 64, 96), torch.arange(6))
    entry, exists = only_mixup._draw_background(torch.full((6000,), 2), only_mixup.bank_clip)
    assert exists.all()
    share = torch.bincount(entry, minlength=6) / 6000
    assert share[2] == 0
    assert share[[0, 1, 3, 4, 5]].sub(0.2).abs().max() < 0.03


def test_the_bank_holds_the_latest_unmixed_crops():
    bank = views(mixup_bank=6)
    batches = torch.randn(3, 4, 64, 96)
    for i, x in enumerate(batches):
        bank(x, torch.arange(4) + 4 * i)
    assert sorted(bank.bank_clip.tolist()) == [6, 7, 8, 9, 10, 11]
    slot = bank.bank_clip.tolist().index(9)
    assert torch.equal(bank.bank[slot], batches[2, 1])


def test_the_same_seed_gives_the_same_views():
    x, clip = torch.randn(4, 64, 96), torch.arange(4)
    assert all(torch.equal(a, b) for a, b in zip(views()(x, clip), views()(x, clip), strict=True))


def in_order(x, clip, g, noise="none", crops=None, crop_clip=None):
    """Both views of x, drawn step by step in the order of the paper; crops are for Mixup."""
    view = torch.cat([x, x])
    weight = 0.2 * torch.rand(len(view), generator=g)
    order = torch.rand(len(view), len(crops), generator=g)
    for v in range(len(view)):
        others = [c for c in range(len(crops)) if crop_clip[c] not in (-1, clip[v % len(x)])]
        if others:
            background = crops[max(others, key=lambda c: order[v, c])]
            view[v] = mixup(view[[v]], background[None], weight[[v]])[0]
    if noise != "none":
        s = 0.2 * torch.rand(len(view), generator=g)
        n = s[:, None, None] * torch.randn(view.shape, generator=g)
        view = view + n if noise == "additive" else mix_noise(view, s, n)
    view = random_linear_fader(random_resize_crop(view, PAPER, g), 1.0, g)
    return view[: len(x)], view[len(x) :]


@pytest.mark.parametrize("background", ["bank", "batch"])
@pytest.mark.parametrize("noise", ["none", "additive", "reference"])
def test_views_are_mixup_noise_crop_and_fader_in_this_order(background, noise):
    actual = views(mixup_background=background, mixup_bank=6, noise=noise)
    g = generator()
    bank, bank_clip = torch.zeros(6, 64, 96), torch.full((6,), -1)
    for step in range(2):
        x = torch.randn(4, 64, 96, generator=generator(step))
        clip = torch.tensor([0, 1, 1, 2]) + 3 * step
        crops = (bank, bank_clip) if background == "bank" else (x, clip)
        expected = in_order(x, clip, g, noise, *crops)
        torch.testing.assert_close(actual(x, clip), expected, rtol=1e-5, atol=1e-5)
        bank[:4], bank_clip[:4] = x, clip
    assert torch.equal(actual.generator.get_state(), g.get_state())


def test_background_from_the_batch_is_any_crop_of_another_clip():
    only_mixup = views(rrc=False, rlf=False, mixup_background="batch")
    clip = torch.tensor([0, 0, 1, 2]).repeat(1500)
    entry, exists = only_mixup._draw_background(torch.zeros(9000, dtype=torch.long), clip[:4])
    assert exists.all()
    share = torch.bincount(entry, minlength=4) / 9000
    assert share[:2].sum() == 0 and share[2:].sub(0.5).abs().max() < 0.03


def test_a_batch_of_one_clip_has_no_background():
    only_mixup = views(rrc=False, rlf=False, mixup_background="batch")
    x = torch.randn(4, 64, 96)
    assert torch.equal(only_mixup(x, torch.zeros(4, dtype=torch.long))[0], x)


def test_standardize_uses_one_mean_and_deviation_for_all_values():
    x = 3 * torch.randn(3, 4, 5, generator=generator()) + 2
    values = [float(v) for v in x.flatten()]
    mean = sum(values) / 60
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / 60)
    torch.testing.assert_close(standardize(x), (x - mean) / std)
    assert not standardize(torch.full((2, 3, 4), 7.0)).any()


def test_ppn_standardizes_the_batch_before_and_both_views_together_after():
    batches = torch.randn(2, 4, 64, 96, generator=generator(7)) * 3 + 1
    batches[1] += 5
    actual, plain = views(pre_post_norm=True), views()
    for step, x in enumerate(batches):
        clip = torch.arange(4) + 4 * step
        view_1, view_2 = plain((x - x.mean()) / x.std(correction=0), clip)
        both = torch.cat([view_1, view_2])
        mean, std = both.mean(), both.std(correction=0)
        expected = (view_1 - mean) / std, (view_2 - mean) / std
        torch.testing.assert_close(actual(x, clip), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both.mean(), view_1.mean(), rtol=0, atol=1e-4)  # not view by view


def test_noise_has_one_deviation_for_each_item_uniform_up_to_its_limit():
    s, noise = draw_noise(torch.zeros(2000, 8, 16), 0.2, generator())
    assert 0 <= s.min() < 0.002 and 0.198 < s.max() <= 0.2
    assert float(s.mean()) == pytest.approx(0.1, rel=0.05)
    torch.testing.assert_close(noise.std((1, 2)), s, rtol=0.4, atol=1e-3)
    unit = noise / s[:, None, None]
    assert float(unit.std()) == pytest.approx(1, rel=0.01)
    assert float(unit.mean()) == pytest.approx(0, abs=0.01)


def test_the_authors_noise_adds_a_full_exponential():
    x, noise = torch.randn(2, 3, 4, 5, generator=generator()).unbind()
    s = torch.tensor([0.0, 0.1, 0.2])
    mixed = mix_noise(x, s, noise)
    for b, f, t in ((0, 1, 1), (1, 3, 4), (2, 2, 0)):
        expected = math.log(
            (1 - float(s[b])) * math.exp(x[b, f, t]) + math.exp(noise[b, f, t]) + 1.1920929e-7
        )
        assert float(mixed[b, f, t]) == pytest.approx(expected, abs=1e-5)


def test_the_authors_noise_acts_as_a_soft_floor():
    x = torch.randn(200, 64, 96, generator=generator(1))
    noisy = mix_noise(x, *draw_noise(x, 0.2, generator(2)))
    assert float(noisy.mean()) == pytest.approx(0.76, abs=0.02)  # as measured on their code
    assert float(noisy.std()) == pytest.approx(0.51, abs=0.02)


def test_views_go_on_from_a_saved_bank_at_the_same_addresses():
    first, second = views(mixup_bank=6), views(mixup_bank=6)
    batches = torch.randn(3, 4, 64, 96, generator=generator(3))
    for i, x in enumerate(batches[:2]):
        first(x, torch.arange(4) + 4 * i)
    addresses = [t.data_ptr() for t in second.state_dict().values()]
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    second.generator.set_state(first.generator.get_state())
    assert [t.data_ptr() for t in second.state_dict().values()] == addresses
    clip = torch.arange(4) + 8
    for a, b in zip(first(batches[2], clip), second(batches[2], clip), strict=True):
        assert torch.equal(a, b)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_a_bank_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"bank of the saved views has shape \[5, 64, 96\]"):
        views(mixup_bank=6).load_state_dict(views(mixup_bank=5).state_dict())


@pytest.mark.parametrize("frames", [32, 96, 160, 320, 480])
def test_views_have_the_size_of_the_crops(frames):
    maker = Views(PAPER.model_copy(update={"mixup_bank": 4}), 64, frames, generator())
    for step in range(2):
        views = maker(torch.randn(3, 64, frames), torch.arange(3) + 3 * step)
        assert all(view.shape == (3, 64, frames) and view.isfinite().all() for view in views)
