"""Two processes on a CPU against one on the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthetic_training import trainer

from pipeline import distributed

HERE = Path(__file__).parent
CASES = {
    "audiontt": {"encoder__dropout": 0.0},
    "vitc": {"encoder": "vitc"},
    "masked": {"encoder": "vitc", "encoder__mask_ratio": 0.5},
    "predictor": {"encoder__dropout": 0.0, "loss__predictor": True, "loss__target": "ema"},
}


def torchrun(script, *arguments, processes=2):
    """Run a script of the tests in several processes."""
    options = ["--standalone", f"--nproc-per-node={processes}", str(HERE / script)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What both processes computed for all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("two_processes.py", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_loss_gradients_and_running_statistics_are_those_of_the_global_batch(two_processes, name):
    first, second = (result[name] for result in two_processes)
    for key in first:
        assert torch.equal(first[key], second[key]), f"{key} differs between the processes"
    expected = compute(name, slice(0, 16))
    for kind in ("loss", "gradient", "statistics", "weights"):
        actual, want = first[kind].double(), expected[kind].double()
        assert float((actual - want).norm() / want.norm()) < 1e-5, kind


def compute(name, own):
    """Loss, gradient, batch statistics and the weights after a step, given some of the items."""
    run = trainer(**CASES[name], optimizer__lr=0.01)
    run.model.double().train()
    run.target.double().train()
    run.at_once = True
    generator = torch.Generator().manual_seed(7)
    views = [torch.randn(16, 64, 32, generator=generator).double() + i for i in range(2)]
    kept = None
    if name == "masked":
        order = torch.rand(16, 8, generator=generator).argsort(dim=1)
        kept = order[own, :4].sort(dim=1).values
    run._draw_views = lambda: (*(view[own] for view in views), kept)
    run.draw_views = run._draw_views
    run.step = 4
    run.optimizer.zero_grad()
    for group in run.optimizer.param_groups:
        group["lr"] = group["lr"].double()
    terms = run.update()
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    buffers = [b for n, b in run.model.named_buffers() if "running" in n]
    return {
        "loss": terms.sum(),
        "gradient": torch.cat([p.grad.flatten() for p in parameters]),
        "statistics": torch.cat([b.flatten() for b in buffers]),
        "weights": torch.cat([p.detach().flatten() for p in run.model.parameters()]),
    }


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
