"""Optimizers and schedule against their definitions written out."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from pipeline.config import load_config
from pipeline.encoders.build import build_encoder
from pipeline.pretrain.cuda_graph import CudaGraph
from pipeline.pretrain.optim import Lars, build_optimizer, lr_factor, set_lr

CONFIG = load_config()
LARS = CONFIG.encoders.audiontt.optimizer.model_copy(update={"lr": 0.4})  # the paper's
ADAMW = CONFIG.encoders.vitc.optimizer


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))


def test_lars_equals_its_definition_over_three_steps():
    net = model()
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    momentum = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    optimizer = build_optimizer(net, LARS)
    for step in range(3):
        grads = {n: torch.randn(p.shape) * (step + 1) for n, p in net.named_parameters()}
        for name, p in net.named_parameters():
            p.grad = grads[name].clone()
        optimizer.step()
        for name, p in expected.items():
            g = grads[name]
            if p.ndim > 1:
                g = g + 1e-5 * p
                g = g * 0.001 * p.norm() / g.norm()
            momentum[name] = 0.9 * momentum[name] + g
            expected[name] = p - (0.4 if p.ndim > 1 else 0.0048) * momentum[name]
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_lars_trust_ratio_is_1_where_a_norm_is_0(zero):
    weight = nn.Parameter(torch.zeros(2, 2) if zero == "weight" else torch.ones(2, 2))
    params = LARS.model_copy(update={"weight_decay": 0.0})
    weight.grad = torch.ones(2, 2) if zero == "weight" else torch.zeros(2, 2)
    before, grad = weight.detach().clone(), weight.grad.clone()
    Lars([{"params": [weight]}], params).step()
    torch.testing.assert_close(weight.detach(), before - 0.4 * grad)


def test_lars_moves_matrices_independently_of_the_scale_of_the_loss_but_not_vectors():
    moves = []
    for scale in (1.0, 1000.0):
        net = model()
        before = [p.detach().clone() for p in net.parameters()]
        optimizer = build_optimizer(net, LARS.model_copy(update={"weight_decay": 0.0}))
        torch.manual_seed(1)
        (scale * net(torch.randn(8, 3)).square().sum()).backward()
        optimizer.step()
        moves.append([b - p.detach() for b, p in zip(before, net.parameters(), strict=True)])
    matrix, vector = 0, 3  # first weight, shift of the batch norm
    torch.testing.assert_close(moves[0][matrix], moves[1][matrix], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(1000 * moves[0][vector], moves[1][vector], rtol=1e-3, atol=1e-6)


def adam_step(p, g, state, step, decay, decoupled):
    """Adam with betas 0.8 and 0.95, rate 0.01, one value at a time."""
    new = []
    for i in range(len(p)):
        grad = g[i] if decoupled else g[i] + decay * p[i]
        m, v = state[i]
        m, v = 0.8 * m + 0.2 * grad, 0.95 * v + 0.05 * grad**2
        state[i] = (m, v)
        kept = p[i] * (1 - 0.01 * decay) if decoupled else p[i]
        m_hat, v_hat = m / (1 - 0.8**step), v / (1 - 0.95**step)
        new.append(kept - 0.01 * m_hat / (math.sqrt(v_hat) + 1e-8))
    return new


def sgd_step(p, g, state, step, decay, momentum):
    """SGD with L2 decay, rate 0.01, one value at a time."""
    for i in range(len(p)):
        state[i] = (momentum * state[i][0] + g[i] + decay * p[i], 0.0)
    return [p[i] - 0.01 * state[i][0] for i in range(len(p))]


@pytest.mark.parametrize(
    ("name", "momentum", "definition"),
    [
        ("adamw", 0.9, partial(adam_step, decoupled=True)),
        ("adam", 0.9, partial(adam_step, decoupled=False)),
        ("sgd", 0.0, partial(sgd_step, momentum=0.0)),
        ("sgd", 0.7, partial(sgd_step, momentum=0.7)),
    ],
)
def test_optimizers_equal_their_definitions_over_four_steps(name, momentum, definition):
    changes = {"lr": 0.01, "weight_decay": 0.5, "momentum": momentum, "beta1": 0.8, "beta2": 0.95}
    net = model()
    optimizer = build_optimizer(net, ADAMW.model_copy(update={"name": name, **changes}))
    expected = {n: p.detach().flatten().tolist() for n, p in net.named_parameters()}
    state = {n: [(0.0, 0.0)] * p.numel() for n, p in net.named_parameters()}
    for step in range(1, 5):
        for n, p in net.named_parameters():
            p.grad = torch.randn(p.shape) * step
            decay = 0.5 if p.ndim > 1 else 0.0
            g = p.grad.flatten().tolist()
            expected[n] = definition(expected[n], g, state[n], step, decay)
        optimizer.step()
    for n, p in net.named_parameters():
        actual = p.detach().flatten()
        torch.testing.assert_close(actual, torch.tensor(expected[n]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lars", "adamw", "adam", "sgd"])
def test_matrices_cls_token_and_learned_positions_have_weight_decay_and_vectors_have_none(name):
    params = CONFIG.encoders.vit.model_copy(update={"position": "learned"})
    encoder = build_encoder("vit", params, n_mels=64, crop_frames=32)
    optimizer = build_optimizer(encoder, ADAMW.model_copy(update={"name": name}))
    names = {id(p): n for n, p in encoder.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    vectors = {n for n, p in encoder.named_parameters() if p.ndim == 1 and p.requires_grad}
    assert {"cls", "position", "blocks.3.mlp.0.weight"} <= groups[0]
    assert groups[1] == vectors and "blocks.3.norm_1.weight" in vectors
    assert optimizer.param_groups[0]["weight_decay"] == 0.24
    without = optimizer.param_groups[1]
    assert not without["adapt"] if name == "lars" else without["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["lars", "adamw", "adam", "sgd"])
def test_a_change_of_the_name_is_enough_to_change_the_optimizer(name):
    net = model()
    optimizer = build_optimizer(net, LARS.model_copy(update={"name": name, "lr": 1e-4}))
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[1]["base_lr"] == (0.0048 if name == "lars" else 1e-4)
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.randn(p.shape)
    set_lr(optimizer, 0.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    set_lr(optimizer, 1.0)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["lars", "adamw", "adam", "sgd"])
def test_a_captured_step_follows_the_learning_rate(name):
    net = model().cuda()
    optimizer = build_optimizer(net, LARS.model_copy(update={"name": name, "lr": 1e-2}))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    step = CudaGraph(optimizer.step, torch.Generator("cuda"))
    for factor in (1.0, 0.5, 0.25, 0.125, 0.0625):
        set_lr(optimizer, factor)
        step()
    before = [p.detach().clone() for p in net.parameters()]
    set_lr(optimizer, 0.0)
    step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    set_lr(optimizer, 1.0)
    step()
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_frozen_parameters_are_not_optimized():
    net = model()
    net[0].requires_grad_(False)
    optimized = {id(p) for g in build_optimizer(net, ADAMW).param_groups for p in g["params"]}
    assert id(net[0].weight) not in optimized and id(net[2].weight) in optimized


def schedule(**changes):
    paper = {"epochs": 100, "batch_size": 128, "warmup_epochs": 1.0, "cosine_horizon": 1.0}
    return CONFIG.pretrain.model_copy(update={"schedule": "cosine", **paper, **changes})


def test_learning_rate_warms_up_over_one_epoch_and_falls_to_a_thousandth():
    p = schedule()
    assert lr_factor(0, 320, p) == 0.0
    assert lr_factor(160, 320, p) == pytest.approx(0.5)
    assert lr_factor(320, 320, p) == pytest.approx(1.0)
    middle = lr_factor((320 + 32_000) // 2, 320, p)
    assert middle == pytest.approx((1 + 0.001) / 2)
    assert lr_factor(32_000, 320, p) == pytest.approx(0.001)


def test_the_authors_horizon_ends_at_a_tenth():
    assert lr_factor(32_000, 320, schedule(cosine_horizon=1.25)) == pytest.approx(0.0979, abs=1e-4)


def test_constant_schedule_stays_at_its_peak():
    p = schedule(schedule="constant")
    assert [lr_factor(s, 320, p) for s in (320, 10_000, 31_999)] == [1.0, 1.0, 1.0]


def test_learning_rates_scale_with_the_batch_size_once():
    assert lr_factor(320, 320, schedule(batch_size=256)) == pytest.approx(2.0)


def test_no_warm_up_starts_at_the_full_rate():
    assert lr_factor(0, 320, schedule(warmup_epochs=0.0)) == pytest.approx(1.0)


def test_every_group_is_scaled_from_its_own_base_rate():
    optimizer = build_optimizer(model(), LARS)
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.0012])
    assert math.isclose(optimizer.param_groups[0]["base_lr"], 0.4)
