"""Pre-training on synthetic sounds: it learns, is reproducible, and does what the paper says."""

import math

import pytest
import torch
from synthetic_training import CPU, features, settings, with_optimizer

from pipeline.pretrain.diagnostics import correlation
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.model import build_model

pytestmark = pytest.mark.usefixtures("shallow")


def trained(**changes):
    trainer = Trainer(settings(**changes), features(), CPU)
    trainer.run()
    return trainer


@pytest.mark.parametrize("encoder", ["audiontt", "vitc"])
def test_the_loss_falls_well_below_its_value_at_initialisation(encoder):
    changes = {"pretrain__epochs": 12, "pretrain__batch_size": 32, "projector__out_dim": 16}
    changes |= {"augment__rrc": False}  # these sounds differ in which mel bins are loud
    lr = {"audiontt": 0.016, "vitc": 0.002}[encoder]
    run = with_optimizer(settings(encoder, **changes), name="adamw", lr=lr, weight_decay=0.01)
    trainer = Trainer(run, features(), CPU)
    before = correlation(trainer.updater).diagonal().mean()
    trainer.run()
    assert correlation(trainer.updater).diagonal().mean() > 1.2 * before
    history = trainer.history_table()
    assert history["step"].tolist() == list(range(24))
    assert history["loss"].iloc[-4:].mean() < 0.6 * history["loss"].iloc[:4].mean()
    assert (history["loss"] - history["invariance"] - history["redundancy"]).abs().max() < 1e-3
    assert history["noise_floor"].iloc[0] == pytest.approx(0.005 * 16 * 15 / 32)


def test_the_first_point_of_the_curve_is_the_loss_of_the_initial_model():
    trainer = Trainer(settings(pretrain__epochs=1), features(), CPU)
    initial = {k: v.clone() for k, v in trainer.model.state_dict().items() if "weight" in k}
    trainer.model.train()
    one_step(trainer)
    assert all(torch.equal(trainer.model.state_dict()[k], v) for k, v in initial.items())
    one_step(trainer)
    assert not all(torch.equal(trainer.model.state_dict()[k], v) for k, v in initial.items())


@pytest.mark.parametrize("encoder", ["audiontt", "vitc"])
def test_the_same_seed_gives_the_same_weights_and_curves(encoder):
    first, second = trained(encoder=encoder), trained(encoder=encoder)
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict(), rtol=0, atol=0)
    assert first.history_table().equals(second.history_table())
    other = trained(encoder=encoder, pretrain__seed=1)
    assert not first.history_table().equals(other.history_table())


def test_the_seed_alone_decides_the_initial_weights():
    torch.manual_seed(1)
    first = build_model(settings(), 64)
    torch.manual_seed(2)
    second = build_model(settings(), 64)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def one_step(trainer):
    trainer.train_step(torch.arange(16), torch.linspace(0, 0.99, 16))


def spy_on_forward(trainer):
    """Record the views that the model is given and the embeddings that it returns."""
    calls = []
    trainer.model.register_forward_hook(lambda module, args, out: calls.append((args[:2], out)))
    trainer.model.train()
    torch.manual_seed(0)
    one_step(trainer)
    return calls[0]


def test_the_model_sees_two_different_views_of_the_same_clips():
    (view_1, view_2), _ = spy_on_forward(Trainer(settings(), features(), CPU))
    assert not torch.allclose(view_1, view_2)
    trainer = Trainer(settings(augment__mixup=False, augment__rrc=False), features(), CPU)
    (view_1, view_2), _ = spy_on_forward(trainer)
    detrended = (view_1 - view_2).diff(n=2, dim=2)  # two faders differ by a straight line
    torch.testing.assert_close(detrended, torch.zeros_like(detrended), rtol=0, atol=1e-4)


def test_each_view_has_its_own_batch_statistics_and_dropout_is_active():
    trainer = Trainer(settings(), features(), CPU)
    (view_1, view_2), (z_1, _) = spy_on_forward(trainer)
    fresh = Trainer(settings(), features(), CPU).model.train()
    means = []
    fresh.encoder.conv[0][1].register_forward_hook(
        lambda m, args, out: means.append(args[0].mean())
    )
    torch.manual_seed(0)
    again, _ = fresh(view_1, view_2)
    assert len(means) == 2
    assert not torch.isclose(means[0], means[1])
    torch.testing.assert_close(again, z_1)
    assert not torch.allclose(fresh(view_1, view_2)[0], again)  # other dropout masks


def test_the_logged_terms_are_equations_1_and_2_of_the_embeddings():
    trainer = Trainer(settings(loss__alpha=2.0, loss__lambda_=0.1), features(), CPU)
    _, (z_1, z_2) = spy_on_forward(trainer)
    z_1, z_2 = z_1.detach().double(), z_2.detach().double()
    n_1, n_2 = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z_1, z_2))
    c = torch.einsum("bi,bj->ij", n_1, n_2) / 16
    row = trainer.history_table().iloc[0]
    assert row["invariance"] == pytest.approx(
        2.0 * float((c.diagonal() - 1).square().sum()), rel=1e-4
    )
    off = c[~torch.eye(32, dtype=torch.bool)]
    assert row["redundancy"] == pytest.approx(0.1 * float(off.square().sum()), rel=1e-4)


def test_the_picture_of_the_correlation_leaves_no_trace_on_the_run():
    with_picture, without = (Trainer(settings(), features(), CPU) for _ in range(2))
    before = correlation(with_picture.updater)
    assert torch.equal(before, correlation(without.updater))
    with_picture.run()
    after = correlation(with_picture.updater)
    without.run()
    torch.testing.assert_close(
        with_picture.model.state_dict(), without.model.state_dict(), rtol=0, atol=0
    )
    assert before.shape == after.shape == (32, 32)
    assert not torch.equal(before, after)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where():
    trainer = Trainer(settings(), features(), CPU)
    with torch.no_grad():
        trainer.model.projector[0].weight.fill_(math.inf)
    with pytest.raises(FloatingPointError, match=r"since step 0 of 8\. Lower .*optimizer\.lr"):
        trainer.run()


def test_fewer_clips_than_a_batch_are_refused_before_training():
    with pytest.raises(ValueError, match=r"fewer than pretrain\.batch_size = 16 needs"):
        Trainer(settings(), features(clips=10), CPU)
