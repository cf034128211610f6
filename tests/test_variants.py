"""Every encoder and every switch of the ablations trains; the asymmetric objectives by hand."""

import copy
import math

import pytest
import torch
from synthetic_training import CPU, NO_AUGMENTATION, features, settings, trainer, with_optimizer

from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.loss import barlow_twins_loss, cross_correlation
from pipeline.pretrain.projector import build_projector

pytestmark = pytest.mark.usefixtures("shallow")

FEW = {"pretrain__batch_size": 8, "pretrain__rank_clips": 8}
PATCHES = [(16, 16), (16, 8), (8, 8), (64, 2)]
SWITCHES = [
    {"augment__mixup": False},
    {"augment__rrc": False},
    {"augment__rlf": False},
    {"augment__mixup": False, "augment__rrc": False},
    {"augment__mixup": False, "augment__rlf": False},
    {"augment__rrc": False, "augment__rlf": False},
    {"augment__mixup_background": "batch"},
    {"augment__noise": "additive"},
    {"augment__noise": "reference", "augment__mixup": False},
    {"augment__pre_post_norm": True},
    {"loss__alpha": 0.0},
    {"loss__lambda_": 0.0},
    {"loss__hsic": True},
    {"loss__target": "stop_gradient"},
    {"loss__target": "stop_gradient", "loss__predictor": True},
    {"loss__target": "ema"},
    {"loss__target": "ema", "loss__predictor": True},
    {"loss__predictor": True},
    {"projector__hidden_layers": 0},
    {"projector__hidden_layers": 3, "projector__out_dim": 64},
    {"optimizer__name": "adamw"},
    {"optimizer__name": "adam"},
    {"optimizer__name": "sgd"},
    {"pretrain__schedule": "constant", "pretrain__warmup_epochs": 0.0},
    {"pretrain__crops_per_clip": 4},
    {"pretrain__crop_frames": 40},
]
MASKS = [
    {"encoder__mask_ratio": 0.5},
    {"encoder__mask_ratio": 0.5, "encoder__mask_schedule": "random"},
    {"encoder__mask_ratio": 0.5, "encoder__mask_schedule": "sine", "encoder__mask_warmup": 0.0},
    {"encoder__pool": "mean", "encoder__mask_ratio": 0.3},
    {"encoder__position": "learned"},
]


def assert_trains(run):
    run.run()
    assert len(run.history.steps) == 2 * run.steps_per_epoch
    assert run.steps_per_epoch >= 2
    table = run.history_table()
    assert table.notna().all().all()
    assert (table["encoder_grad_norm"] > 0).all()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_switch_trains(changes, fast):
    assert_trains(uncompiled(settings(**FEW, **changes), fast))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("encoder", ["vit", "vitc"])
@pytest.mark.parametrize("patch", PATCHES)
def test_every_patch_trains(encoder, patch, fast):
    mels, frames = patch
    changes = {"encoder__patch_mels": mels, "encoder__patch_frames": frames}
    assert_trains(uncompiled(settings(encoder, **FEW, **changes), fast))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("changes", MASKS, ids=str)
def test_every_mask_trains(changes, fast):
    assert_trains(uncompiled(settings("vitc", **FEW, **changes), fast))


def uncompiled(run, fast):
    """A trainer of the fast path or not, without the compiler, which would take minutes here."""
    training = Trainer(run, features(clips=2 * run.pretrain.batch_size), CPU, fast=False)
    training.updater.fast = training.updater.both_views_at_once = fast
    return training


def views_of(run):
    clips, draw = torch.arange(16), torch.linspace(0, 0.99, 16)
    return run.updater.views(run.loader.crops(clips, draw), clips)


def without_dropout(**changes):
    run = trainer(encoder__dropout=0.0, **changes)
    run.model.train()
    run.updater.target.train()
    return run


def gradient(loss, model):
    weights = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(weights, grads, strict=True)
        ]
    )


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("target", ["shared", "stop_gradient", "ema"])
def test_the_objective_and_its_gradient_are_those_written_out(target, predictor, at_once):
    run = without_dropout(loss__target=target, loss__predictor=predictor)
    run.updater.both_views_at_once = at_once
    if target == "ema":  # it has moved away from the model
        for weight in run.updater.target.parameters():
            weight.mul_(1.1)
    view_1, view_2 = views_of(run)
    model, other = copy.deepcopy(run.model), copy.deepcopy(run.updater.target)
    z_1, z_2 = (model.projector(model.encoder(v[:, None])) for v in (view_1, view_2))
    p_1, p_2 = (model.predictor(z) if predictor else z for z in (z_1, z_2))
    if target == "ema":
        with torch.no_grad():
            t_1, t_2 = (other.projector(other.encoder(v[:, None])) for v in (view_1, view_2))
        pairs = [(p_1, t_2), (p_2, t_1)]
    else:
        pairs = [(p_1, z_2 if target == "shared" else z_2.detach())]
    losses = [sum(barlow_twins_loss(cross_correlation(*p), run.settings.loss)) for p in pairs]
    expected = sum(losses) / len(losses)
    actual = sum(run.updater._loss(view_1, view_2))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
    want, have = gradient(expected, model), gradient(actual, run.model)
    assert float((have - want).norm() / want.norm()) < 1e-4


def test_the_target_follows_the_weights_but_keeps_its_own_batch_statistics():
    run = without_dropout(loss__target="ema", loss__ema_decay=0.9, pretrain__warmup_epochs=0.0)
    batch = torch.arange(16), torch.linspace(0, 0.99, 16)
    run.train_step(*batch)
    before = copy.deepcopy(run.updater.target.state_dict())
    run.train_step(*batch)
    after, model = run.updater.target.state_dict(), run.model.state_dict()
    names = dict(run.updater.target.named_parameters())
    assert not torch.equal(model["projector.0.weight"], before["projector.0.weight"])
    for name in names:
        torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * model[name])
    mean = "projector.1.running_mean"
    assert not torch.equal(after[mean], model[mean])
    assert not torch.equal(after[mean], 0.9 * before[mean] + 0.1 * model[mean])


def test_the_predictor_is_two_layers_without_a_change_of_size_and_is_trained():
    run = trainer(loss__predictor=True)
    expected = build_projector(
        run.settings.projector.model_copy(
            update={"hidden_layers": 1, "hidden_dim": 32, "out_dim": 32}
        ),
        32,
    )
    assert str(run.model.predictor) == str(expected)
    before = run.model.predictor[0].weight.clone()
    run.run()
    assert not torch.equal(before, run.model.predictor[0].weight)


def test_masks_hide_patches_of_view_1_alone():
    run = trainer("vitc", encoder__mask_ratio=0.5)
    seen = []
    block = run.model.encoder.blocks[0]
    block.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    run.train_step(torch.arange(16), torch.linspace(0, 0.99, 16))
    assert seen == [1 + 4, 1 + 8]  # CLS, and 4 of the 4 x 2 patches; then all


@pytest.mark.parametrize("name", ["lars", "adamw", "adam", "sgd"])
def test_every_optimizer_lowers_the_loss(name):
    lr = {"lars": 2.0, "adamw": 0.01, "adam": 0.01, "sgd": 0.01}[name]
    run = settings(pretrain__epochs=12, pretrain__warmup_epochs=1.0, **NO_AUGMENTATION)
    run = with_optimizer(run, name=name, lr=lr, weight_decay=1e-5)
    training = uncompiled(run, fast=False)
    training.run()
    loss = training.history_table()["loss"]
    assert loss.iloc[-4:].mean() < loss.iloc[:4].mean()


def test_the_sine_schedule_advances_with_each_step_of_a_single_epoch():
    changes = {"mask_ratio": 0.4, "mask_schedule": "sine", "mask_warmup": 0.25}
    run = trainer("vitc", pretrain__epochs=1, **{f"encoder__{k}": v for k, v in changes.items()})
    ratios = []
    while run.step < run.steps:
        ratios.append(run._mask_ratio())
        run.step += 1
    t = [max(0.0, (step / run.steps - 0.25) / 0.75) for step in range(run.steps)]
    assert ratios == pytest.approx([0.4 * math.sin(math.pi / 2 * share) for share in t])
    assert ratios[0] == 0 < ratios[-1]
