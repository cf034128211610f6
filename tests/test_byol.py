"""BYOL's objective on the same encoder, data and views, against its definition written out."""

import copy

import pytest
import torch
from synthetic_training import CPU, NO_AUGMENTATION, features, settings, trainer

from pipeline.config import load_config
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.loss import byol_loss, noise_floor
from pipeline.pretrain.params import LossParams

BYOL = {"loss__objective": "byol", "loss__target": "ema", "loss__predictor": True}


def test_the_loss_is_the_mean_squared_distance_of_normalized_embeddings():
    q, z = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    distance = [((a / a.norm()) - (b / b.norm())).square().sum() for a, b in zip(q, z, strict=True)]
    torch.testing.assert_close(byol_loss(q, z), torch.stack(distance).mean())
    assert float(byol_loss(q, 3 * q)) == pytest.approx(0, abs=1e-6)
    assert float(byol_loss(q, -q)) == pytest.approx(4, abs=1e-5)


def test_there_is_no_noise_floor():
    params = load_config().loss.model_copy(update={"objective": "byol"})
    assert noise_floor(params, 256, 128) == 0


@pytest.mark.parametrize("at_once", [False, True])
def test_each_view_s_prediction_is_compared_with_the_target_s_embedding_of_the_other(at_once):
    run = trainer(encoder__dropout=0.0, **BYOL)
    run.model.train()
    run.updater.target.train()
    run.updater.both_views_at_once = at_once
    for weight in run.updater.target.parameters():  # it has moved away from the model
        weight.mul_(1.1)
    clips, draw = torch.arange(16), torch.linspace(0, 0.99, 16)
    view_1, view_2 = run.updater.views(run.loader.crops(clips, draw), clips)
    model, target = copy.deepcopy(run.model), copy.deepcopy(run.updater.target)
    q_1, q_2 = (model.predictor(model.projector(model.encoder(v[:, None])))
                for v in (view_1, view_2))  # fmt: skip
    with torch.no_grad():
        z_1, z_2 = (target.projector(target.encoder(v[:, None])) for v in (view_1, view_2))
    terms = run.updater._loss(view_1, view_2)
    expected = byol_loss(q_1, z_2) + byol_loss(q_2, z_1)
    torch.testing.assert_close(terms.invariance, expected, rtol=1e-5, atol=1e-5)
    assert float(terms.redundancy) == 0
    terms.invariance.backward()
    assert all(weight.grad is None for weight in run.updater.target.parameters())


def test_it_trains():
    changes = BYOL | NO_AUGMENTATION | {"pretrain__epochs": 8, "pretrain__batch_size": 8}
    run = Trainer(settings(**changes), features(clips=16), CPU, fast=False)
    run.run()
    loss = run.history_table()["loss"]
    assert loss.iloc[-4:].mean() < loss.iloc[:4].mean()
    assert loss.between(0, 8).all()


@pytest.mark.parametrize("change", [{"target": "shared"}, {"predictor": False}])
def test_without_target_or_predictor_it_would_collapse_and_is_refused(change):
    section = load_config().loss.model_dump() | {"objective": "byol", "target": "ema"}
    with pytest.raises(ValueError, match="byol needs target = ema and predictor = true"):
        LossParams.model_validate(section | {"predictor": True} | change)
