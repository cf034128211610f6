"""Curves of a run: effective rank, norms and rates by their definitions."""

import gc
import math

import pytest
import torch
from synthetic_training import CPU, features, settings, trainer

from pipeline.pretrain.diagnostics import ranks
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.loss import noise_floor
from pipeline.pretrain.telemetry import History, Throughput, dead_dimensions, effective_rank


def orthogonal(n, d, seed=0):
    torch.manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, d)).Q


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_effective_rank_of_equal_singular_values_is_their_number(rank):
    x = orthogonal(50, rank) @ orthogonal(8, rank, seed=1).T
    assert effective_rank(x) == pytest.approx(rank, rel=1e-3)


def test_the_effective_rank_is_rankme_written_out():
    x = torch.randn(30, 12) * torch.linspace(0.01, 3, 12)
    values = torch.linalg.svd(x.double()).S
    entropy = 0.0
    for value in values.tolist():
        share = value / float(values.sum()) + torch.finfo(torch.float32).eps
        entropy -= share * math.log(share)
    assert effective_rank(x) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_dead_dimensions_are_those_with_one_value_for_all():
    x = torch.randn(20, 6)
    x[:, 2] = 7.0
    x[:, 4] = 0.0
    assert dead_dimensions(x) == 2
    assert dead_dimensions(torch.ones(5, 3)) == 3


def test_logged_norms_are_those_of_gradients_and_weights():
    run = trainer()
    run.model.train()
    run.train_step(torch.arange(16), torch.linspace(0, 0.99, 16))
    row = run.history_table().iloc[0]
    for name, module in (("encoder", run.model.encoder), ("projector", run.model.projector)):
        weights = [p for p in module.parameters() if p.grad is not None]
        for kind, values in (("grad", [p.grad for p in weights]), ("weight", weights)):
            expected = torch.cat([v.detach().flatten() for v in values]).norm()
            assert row[f"{name}_{kind}_norm"] == pytest.approx(float(expected), rel=1e-5)


def test_curves_have_both_rates_and_the_loss_above_the_noise_floor():
    run = trainer(pretrain__epochs=2)
    run.run()
    table, s = run.history_table(), run.settings
    floor = noise_floor(s.loss, 32, 16)
    assert (table["loss_above_floor"] - (table["loss"] - floor)).abs().max() < 1e-5
    optimizer = s.encoder.optimizer
    ratio = table["lr_vectors"].iloc[1:] / table["lr"].iloc[1:]
    assert ratio.to_numpy() == pytest.approx(optimizer.lr_biases / optimizer.lr)
    assert table["lr"].iloc[4] == pytest.approx(optimizer.lr * 16 / 128)  # after the warm-up


def test_one_row_for_each_epoch_with_its_mean_loss_and_ranks():
    run = trainer()
    run.run()
    epochs, steps = run.history.epochs, run.history_table()
    assert [row["epoch"] for row in epochs] == [1, 2]
    for row, part in zip(epochs, (steps.iloc[:4], steps.iloc[4:]), strict=True):
        for term in ("loss", "invariance", "redundancy"):
            assert row[term] == pytest.approx(part[term].mean())
        assert 1 <= row["rank_y"] <= 16
        assert 1 <= row["rank_z"] <= 16
        assert 0 <= row["dead_y"] < 192


def test_the_mean_loss_of_an_epoch_counts_steps_that_were_not_logged():
    every, few = trainer(), trainer(pretrain__log_every=1000)
    every.run()
    few.run()
    assert [row["loss"] for row in few.history.epochs] == [r["loss"] for r in every.history.epochs]


def test_ranks_are_measured_in_evaluation_mode_on_crops_from_all_over_the_data():
    run = trainer()
    seen = []
    run.model.encoder.register_forward_hook(
        lambda module, args, out: seen.append((module.training, len(out), out))
    )

    def measured():
        p = run.settings.pretrain
        return ranks(run.model, run.loader, p.rank_clips, p.seed)

    first = measured()
    assert [(training, n) for training, n, _ in seen] == [(False, 16)]
    assert first["rank_y"] == pytest.approx(effective_rank(seen[0][2]))
    assert measured() == first
    assert run.model.encoder.training


def test_measuring_leaves_no_trace_on_the_run():
    with_ranks, without = trainer(), trainer(pretrain__rank_clips=0)
    with_ranks.run()
    without.run()
    torch.testing.assert_close(
        with_ranks.model.state_dict(), without.model.state_dict(), rtol=0, atol=0
    )
    terms = {"loss", "invariance", "redundancy"}
    assert set(without.history.epochs[0]) == {"epoch", "step"} | terms


def test_throughput_is_samples_over_seconds_and_the_share_of_waiting(monkeypatch):
    now = [50.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    throughput = Throughput()
    throughput.mark(10, 32, 1.0)
    now[0] += 4.0
    throughput.mark(10, 32, 1.0)  # no step since: no row
    assert throughput.table().to_dict("records") == []
    now[0] += 4.0
    throughput.mark(30, 32, 2.0)
    (row,) = throughput.table().to_dict("records")
    assert row == {"step": 30, "samples_per_s": 160.0, "wait_share": 0.25}


def test_rows_are_fetched_in_order_and_the_first_bad_loss_is_named():
    history = History()
    for step in range(4):
        values = torch.ones(6)
        values[1] = torch.inf if step >= 2 else 1.0
        history.log({"step": float(step)}, values)
    assert len(history) == 4
    with pytest.raises(FloatingPointError, match="The loss is inf since step 2"):
        history.fetch()


def test_a_run_keeps_no_more_tensors_as_it_goes_on():
    small = {"pretrain__batch_size": 2, "augment__mixup_bank": 4, "projector__hidden_dim": 16}
    run = Trainer(settings(pretrain__epochs=100, **small), features(), CPU)
    run.model.train()
    counts = []
    for step in range(400):
        run.train_step(torch.arange(2), torch.full((2,), 0.5))
        if step % 100 == 99:
            gc.collect()
            counts.append(sum(type(x) is torch.Tensor for x in gc.get_objects()))
    assert max(counts) == min(counts)
