"""Two processes on a CPU against one on the same global batch."""

import os
import shutil
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pandas as pd
import pytest
import torch
from synthetic_training import ROOT, set_up_stage, trainer

import stages.pretrain
from pipeline.core.stage import run
from pipeline.pretrain import distributed
from pipeline.pretrain.augment import standardize
from pipeline.pretrain.loop import Trainer

# The first step of AdamW is the sign of the gradient, which rounding decides where it is near 0.
VITC = {"encoder": "vitc", "optimizer__name": "sgd"}
CASES = {
    "audiontt": {"encoder__dropout": 0.0},
    "vitc": VITC,
    "masked": VITC | {"encoder__mask_ratio": 0.5},
    "predictor": {"encoder__dropout": 0.0, "loss__predictor": True, "loss__target": "ema"},
}


def in_two_processes(function, *arguments):
    """Call a function in two forked processes with torchrun's environment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = [fork(rank, port, function, *arguments) for rank in (0, 1)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def fork(rank, port, function, *arguments):
    """Start the process of a rank, without torchrun's and Python's seconds of imports."""
    if child := os.fork():
        return child
    status = 1
    try:
        own = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        shared = {"TORCHELASTIC_RUN_ID": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in (own | shared).items()})
        function(*arguments)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Results of both processes for all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(save_results, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def save_results(folder):
    """Write the results of every case on this process's half of the batch."""
    with distributed.process_group(torch.device("cpu")):
        half = slice(8 * distributed.rank(), 8 * distributed.rank() + 8)
        results = {name: compute(name, half) for name in CASES}
        results["pre_post_norm"] = standardize(uneven_crops()[half])
        torch.save(results, folder / f"{distributed.rank()}.pt")


@pytest.mark.parametrize("name", CASES)
def test_loss_gradients_and_running_statistics_are_those_of_the_global_batch(two_processes, name):
    first, second = (result[name] for result in two_processes)
    for key in first:
        assert torch.equal(first[key], second[key]), f"{key} differs between the processes"
    expected = compute(name, slice(0, 16))
    for kind, value in expected.items():
        difference = first[kind].double() - value.double()
        assert float(difference.norm() / value.double().norm()) < 1e-5, kind


def test_a_batch_is_standardized_by_the_statistics_of_all_shares(two_processes):
    standardized = torch.cat([result["pre_post_norm"] for result in two_processes])
    torch.testing.assert_close(standardized, standardize(uneven_crops()))


def uneven_crops():
    """A batch whose items differ in mean and deviation."""
    scale = torch.arange(1.0, 17.0)[:, None, None]
    return scale * (1 + torch.randn(16, 8, 6, generator=torch.Generator().manual_seed(0)))


def compute(name, own):
    """Loss, gradient, batch statistics and weights after a step on some of the items."""
    training = trainer(**CASES[name], optimizer__lr=0.01)
    training.model.double().train()
    training.updater.target.double().train()
    training.updater.both_views_at_once = True
    generator = torch.Generator().manual_seed(7)
    views = [torch.randn(16, 64, 32, generator=generator).double() + i for i in range(2)]
    visible = None
    if name == "masked":
        order = torch.rand(16, 8, generator=generator).argsort(dim=1)
        visible = order[own, :4].sort(dim=1).values
    training.updater._draw_views = lambda: (*(view[own] for view in views), visible)
    training.updater.draw_views = training.updater._draw_views
    training.step = 4
    training.updater.optimizer.zero_grad()
    for group in training.updater.optimizer.param_groups:
        group["lr"] = group["lr"].double()
    terms = training.updater.update()
    parameters = [p for p in training.model.parameters() if p.grad is not None]
    buffers = [b for n, b in training.model.named_buffers() if "running" in n]
    return {
        "loss": terms.sum(),
        "gradient": torch.cat([p.grad.flatten() for p in parameters]),
        "statistics": torch.cat([b.flatten() for b in buffers]),
        "weights": torch.cat([p.detach().flatten() for p in training.model.parameters()]),
    }


def test_the_stage_trains_in_two_processes_and_publishes_once(repository, monkeypatch):
    set_up_stage(repository, devices=2)
    done = subprocess.run(
        [sys.executable, "-m", "stages.pretrain"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("epoch 2 of 2") == 1
    assert "39 clips (1 more are left out)" in done.stderr
    history = pd.read_csv("data/pretrained/history.csv")
    assert history["step"].tolist() == [0, 1, 2, 3]
    weights = Path("data/pretrained/encoder.safetensors").read_bytes()
    shutil.rmtree("data/pretrained")
    monkeypatch.setattr(Trainer, "train_step", None)  # the run is complete: it only resumes
    in_two_processes(run, "pretrain", stages.pretrain.main)
    assert Path("data/pretrained/encoder.safetensors").read_bytes() == weights
    assert pd.read_csv("data/pretrained/history.csv").equals(history)


def test_the_stage_refuses_a_batch_that_cannot_be_shared_before_torchrun(
    repository, monkeypatch, caplog
):
    set_up_stage(repository, devices=2, batch_size=15)
    started = []
    monkeypatch.setattr(distributed, "relaunch", lambda *arguments: started.append(arguments))
    with pytest.raises(SystemExit, match="1"):
        run("pretrain", stages.pretrain.main)
    assert "pretrain.batch_size = 15 cannot be shared equally by 2 processes" in caplog.text
    assert "Traceback" not in caplog.text
    assert not started


def test_without_torchrun_there_is_one_process():
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    x = torch.randn(3)
    assert distributed.all_mean(x) is x
    assert distributed.any_process(True) and not distributed.any_process(False)
    assert distributed.gather("x") == ["x"]


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(
        ValueError, match=r"pretrain\.batch_size = 16 cannot be shared equally by 3 proc"
    ):
        trainer()
