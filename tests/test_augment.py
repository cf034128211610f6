"""Views against torch's own interpolation, hand-written definitions and known distributions."""

import math

import pytest
import torch
from torch import Generator
from torch.nn import functional

from pipeline.augment import (
    Views,
    _draw_box,
    mixup,
    random_linear_fader,
    random_resize_crop,
    resize_weights,
)
from pipeline.params.config import load_config

PAPER = load_config().augment


def generator(seed=0):
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(20))
def test_resize_crop_equals_interpolate_on_the_canvas(seed):
    g = generator(seed)
    x = torch.randn(1, 64, 96, generator=g)
    boxes = [_draw_box(1, size, canvas, PAPER, g) for size, canvas in ((64, 64), (96, 144))]
    (i, h), (j, w) = [(int(start), int(length)) for start, length in boxes]
    canvas = torch.zeros(1, 1, 64, 144)
    canvas[0, 0, :, 24 : 24 + 96] = x[0]
    crop = canvas[..., i : i + h, j : j + w]
    expected = functional.interpolate(crop, (64, 96), mode="bicubic", align_corners=True)[0]
    weights = [
        resize_weights(*box, size, canvas)
        for box, size, canvas in zip(boxes, (64, 96), (64, 144), strict=True)
    ]
    actual = weights[0] @ x @ weights[1].transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-5)


def test_random_resize_crop_draws_both_boxes_and_applies_them():
    x = torch.randn(3, 64, 96)
    g = generator(5)
    boxes = [_draw_box(3, size, canvas, PAPER, g) for size, canvas in ((64, 64), (96, 144))]
    mel = resize_weights(*boxes[0], 64, 64)
    frame = resize_weights(*boxes[1], 96, 144)
    expected = torch.stack([mel[b] @ x[b] @ frame[b].T for b in range(3)])
    torch.testing.assert_close(random_resize_crop(x, PAPER, generator(5)), expected)


def test_a_box_as_large_as_the_input_on_no_canvas_changes_nothing():
    params = PAPER.model_copy(
        update={"rrc_scale_min": 1.0, "rrc_scale_max": 1.0, "rrc_canvas_frames": 1.0}
    )
    x = torch.randn(4, 64, 96)
    torch.testing.assert_close(random_resize_crop(x, params, generator()), x, rtol=0, atol=1e-5)


def test_boxes_have_the_papers_distribution():
    start, length = _draw_box(40_000, 64, 64, PAPER, generator())
    assert (length == 64).double().mean() == pytest.approx(0.556, abs=0.01)
    assert length.min() == 38
    start, length = _draw_box(40_000, 96, 144, PAPER, generator())
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


@pytest.mark.parametrize("switch", ["mixup", "rrc", "rlf"])
def test_each_augmentation_can_be_switched_off_and_alone_changes_the_view(switch):
    off = {"mixup": False, "rrc": False, "rlf": False}
    x, clip = torch.randn(4, 64, 96), torch.arange(4)
    assert torch.equal(views(**off)(x, clip)[0], x)
    only = views(**{**off, switch: True})
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
    entry, found = only_mixup._draw_background(torch.full((6000,), 2))
    assert found.all()
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
