"""Two processes on a CPU against one on the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from synthetic_features import write_folder
from synthetic_training import trainer

from pipeline.pretrain import distributed
from pipeline.pretrain.augment import standardize

pytestmark = pytest.mark.xdist_group("distributed")

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


def test_a_batch_is_standardized_by_the_statistics_of_all_shares(two_processes):
    standardized = torch.cat([result["pre_post_norm"] for result in two_processes])
    torch.testing.assert_close(standardized, standardize(uneven_crops()))


def uneven_crops():
    """A batch whose items differ in mean and deviation."""
    scale = torch.arange(1.0, 17.0)[:, None, None]
    return scale * (1 + torch.randn(16, 8, 6, generator=torch.Generator().manual_seed(0)))


def compute(name, own):
    """Loss, gradient, batch statistics and the weights after a step, given some of the items."""
    run = trainer(**CASES[name], optimizer__lr=0.01)
    run.model.double().train()
    run.updater.target.double().train()
    run.updater.both_views_at_once = True
    generator = torch.Generator().manual_seed(7)
    views = [torch.randn(16, 64, 32, generator=generator).double() + i for i in range(2)]
    visible = None
    if name == "masked":
        order = torch.rand(16, 8, generator=generator).argsort(dim=1)
        visible = order[own, :4].sort(dim=1).values
    run.updater._draw_views = lambda: (*(view[own] for view in views), visible)
    run.updater.draw_views = run.updater._draw_views
    run.step = 4
    run.updater.optimizer.zero_grad()
    for group in run.updater.optimizer.param_groups:
        group["lr"] = group["lr"].double()
    terms = run.updater.update()
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    buffers = [b for n, b in run.model.named_buffers() if "running" in n]
    return {
        "loss": terms.sum(),
        "gradient": torch.cat([p.grad.flatten() for p in parameters]),
        "statistics": torch.cat([b.flatten() for b in buffers]),
        "weights": torch.cat([p.detach().flatten() for p in run.model.parameters()]),
    }


def set_up_stage(folder, devices, batch_size=16):
    """A folder in which `python -m stages.pretrain` runs on made-up features."""
    content = YAML().load((HERE.parent / "params.yaml").read_text())
    content["encoders"]["audiontt"] |= {"channels": 8, "hidden_dim": 32, "embed_dim": 160}
    content["projector"] |= {"hidden_dim": 32, "out_dim": 16}
    content["augment"] |= {"mixup_bank": 32, "pre_post_norm": True}
    content["pretrain"] |= {"epochs": 2, "batch_size": batch_size, "rank_clips": 8}
    content["compute"]["devices"] = devices
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(content, file)
    features = folder / "data" / "logmel"
    features.mkdir(parents=True)
    write_folder(features, [[100] * 10, [120] * 10, [90] * 10, [110] * 10])
    (features / "stats.json").write_text('{"mean": 300.0, "std": 200.0}')
    (folder / "data" / "excluded.csv").write_text("clip_id\ns1c4\n")


def run_stage(folder):
    done = subprocess.run(
        [sys.executable, "-m", "stages.pretrain"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stderr


def test_the_stage_trains_in_two_processes_and_publishes_once(tmp_path):
    set_up_stage(tmp_path, devices=2)
    code, log = run_stage(tmp_path)
    assert code == 0, log[-3000:]
    assert log.count("epoch 2 of 2") == 1
    assert "39 clips (1 more are left out)" in log
    history = pd.read_csv(tmp_path / "data/pretrained/history.csv")
    assert history["step"].tolist() == [0, 1, 2, 3]
    weights = (tmp_path / "data/pretrained/encoder.safetensors").read_bytes()
    code, log = run_stage(tmp_path)
    assert "continuing from step 4 of 4" in log
    assert (tmp_path / "data/pretrained/encoder.safetensors").read_bytes() == weights


def test_the_stage_refuses_a_batch_that_cannot_be_shared_before_torchrun(tmp_path):
    set_up_stage(tmp_path, devices=2, batch_size=15)
    code, log = run_stage(tmp_path)
    assert code == 1
    assert "pretrain.batch_size = 15 cannot be shared equally by 2 processes" in log
    assert "Traceback" not in log


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
