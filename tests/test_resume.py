"""Interrupted runs: whenever they are killed, they end in the same bits."""

import functools
import logging
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from synthetic_training import CPU, ROOT, features, set_up_stage, settings, trainer

import stages.pretrain
from pipeline.core.code_identity import code_identity
from pipeline.core.stage import run as run_stage
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.resume import TrainingStates, remove_forgotten, stop_after_step

pytestmark = pytest.mark.usefixtures("shallow")

VARIANTS = {
    "audiontt": {},
    "vitc": {"encoder": "vitc", "encoder__mask_ratio": 0.5, "encoder__mask_schedule": "random"},
    "everything": {
        "loss__target": "ema",
        "loss__predictor": True,
        "augment__noise": "additive",
        "optimizer__name": "adamw",
        "pretrain__crops_per_clip": 2,
        "pretrain__log_every": 3,
    },
}


def training_states(folder, minutes=0.0, keep=2):
    return TrainingStates(folder, minutes, keep)


def assert_same(actual, expected):
    torch.testing.assert_close(actual.model.state_dict(), expected.model.state_dict(), **EXACT)
    torch.testing.assert_close(
        actual.updater.target.state_dict(), expected.updater.target.state_dict(), **EXACT
    )
    torch.testing.assert_close(
        actual.updater.views.state_dict(), expected.updater.views.state_dict(), **EXACT
    )
    assert actual.history_table().equals(expected.history_table())
    assert actual.history.epochs == expected.history.epochs


EXACT = {"rtol": 0, "atol": 0}


def resumed(folder, **changes):
    run = trainer(**changes)
    state = training_states(folder).newest()
    if state is not None:
        run.load_state_dict(state)
    return run


@functools.cache
def unbroken_run(name):
    """An unbroken run, shared by tests, which must not change it."""
    run = trainer(**VARIANTS[name])
    run.run()
    return run


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("stop_at", [1, 4, 6])  # within an epoch, at its end, in the last one
def test_a_resumed_run_ends_in_the_same_bits_as_an_unbroken_one(tmp_path, name, stop_at):
    changes = VARIANTS[name]
    first = trainer(**changes)
    saved = training_states(tmp_path, minutes=60.0)

    def stop_there(*args):
        if first.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    first.model.register_forward_pre_hook(stop_there)
    first.updater.both_views_at_once = False
    with pytest.raises(KeyboardInterrupt):
        first.run(saved)
    assert first.step == stop_at + 1  # the step was finished
    torch.manual_seed(999)  # another process has another state
    second = resumed(tmp_path, **changes)
    assert second.step == stop_at + 1
    second.run(saved)
    assert_same(second, unbroken_run(name))


class Killer:
    """Kills the process at the n-th call of a Python function."""

    def __init__(self, calls):
        self.left = calls
        self.counted = 0

    def __call__(self, frame, event, argument):
        if event == "call":
            self.counted += 1
            if self.counted == self.left:
                os.kill(os.getpid(), signal.SIGKILL)


def train_in_child(folder, changes, kill_at):
    """Resume in a child process that dies at a call; return whether the run ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run = resumed(folder, **changes)
            sys.setprofile(Killer(kill_at))
            run.run(training_states(folder))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == 0


@pytest.mark.parametrize("name", ["audiontt", "vitc"])
def test_ten_kills_at_random_moments_change_nothing(tmp_path, name):
    changes = VARIANTS[name] | {"pretrain__epochs": 3}
    unbroken = trainer(**changes)
    counter = Killer(-1)
    sys.setprofile(counter)
    unbroken.run(training_states(tmp_path / "unbroken"))
    sys.setprofile(None)
    draw = random.Random(0)
    kills = 0
    while kills < 10:
        kills += not train_in_child(
            tmp_path / "run", changes, draw.randint(1, counter.counted // 4)
        )
    assert train_in_child(tmp_path / "run", changes, kill_at=-1)
    assert_same(resumed(tmp_path / "run", **changes), unbroken)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("# a comment", "continuing from step 2 of 4"),
        ("ANOTHER = 1", "so this run starts from step 0"),
    ],
)
def test_the_stage_resumes_after_an_edit_of_comments_but_not_of_code(
    repository, monkeypatch, caplog, edit, message
):
    set_up_stage(repository)
    ignored = shutil.ignore_patterns("__pycache__")  # which other processes change meanwhile
    shutil.copytree(ROOT / "pipeline", repository / "pipeline", ignore=ignored)
    identity = functools.partial(code_identity, root=repository)
    monkeypatch.setattr(stages.pretrain, "code_identity", identity)
    train_step = Trainer.train_step

    def stop_after_two(trainer, *batch):
        train_step(trainer, *batch)
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(Trainer, "train_step", stop_after_two)
        run_stage("pretrain", stages.pretrain.main)
    modules = ["*.py"] if edit.startswith("#") else ["augment.py"]
    for path in [p for name in modules for p in Path("pipeline/pretrain").rglob(name)]:
        path.write_text(f"{path.read_text()}\n{edit}\n")
    caplog.clear()
    caplog.set_level(logging.INFO)
    run_stage("pretrain", stages.pretrain.main)
    assert message in caplog.text
    assert pd.read_csv("data/pretrained/history.csv")["step"].tolist() == [0, 1, 2, 3]


def test_resuming_a_finished_run_does_nothing(tmp_path):
    run = trainer(pretrain__epochs=1)
    run.run(training_states(tmp_path))
    again = resumed(tmp_path, pretrain__epochs=1)
    again.train_step = None  # would fail
    again.run(training_states(tmp_path))
    assert_same(again, run)


def test_only_the_last_states_are_kept(tmp_path):
    saved = training_states(tmp_path, keep=3)
    for step in range(6):
        saved.save(step, {"step": step})
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        f"step-{step:09d}.pt" for step in (3, 4, 5)
    ]
    assert saved.newest() == {"step": 5}


def test_a_damaged_state_is_skipped_for_the_one_before(tmp_path, caplog):
    saved = training_states(tmp_path)
    saved.save(1, {"step": 1})
    saved.save(2, {"step": 2})
    newest = tmp_path / "step-000000002.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    assert saved.newest() == {"step": 1}
    assert f"{newest} is damaged" in caplog.text
    saved.save(0, {"step": 0})  # of a run that starts again
    assert [p.name for p in saved._paths()] == ["step-000000000.pt", "step-000000001.pt"]


def test_a_state_with_a_wrong_checksum_is_damaged(tmp_path, caplog):
    saved = training_states(tmp_path)
    saved.save(1, {"bank": torch.zeros(1000)})
    path = tmp_path / "step-000000001.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert saved.newest() is None
    assert "checksum" in caplog.text


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    (tmp_path / "step-000000003.new").write_bytes(b"half")
    training_states(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_would_run_code_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch hacked",))

    torch.save({"step": Evil()}, tmp_path / "step-000000001.pt")
    assert training_states(tmp_path).newest() is None


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    saved = training_states(tmp_path)
    saved.save(1, {"step": 1})

    def full(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    saved.save(2, {"step": 2})
    assert "the state of step 2 could not be written" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.pt"]


def test_states_are_due_after_the_given_minutes(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    saved = training_states(tmp_path, minutes=2.0)
    now[0] += 119
    assert not saved.due()
    now[0] += 1
    assert saved.due()
    saved.save(1, {})
    assert not saved.due()


def test_states_of_other_runs_are_removed_after_a_month(tmp_path):
    for name, days in (("old", 31), ("new", 29)):
        training_states(tmp_path / name).save(1, {})
        for path in (tmp_path / name).iterdir():
            os.utime(path, (time.time() - 24 * 3600 * days,) * 2)
    (tmp_path / "no-states").mkdir()
    remove_forgotten(tmp_path / "old")  # those of this run stay
    assert (tmp_path / "old").exists()
    remove_forgotten(tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "no-states"]


def test_the_first_signal_waits_for_the_step_and_the_second_does_not(caplog):
    caplog.set_level(logging.INFO)
    before = signal.getsignal(signal.SIGINT)
    with stop_after_step() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        assert "stopping after this step" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_in_another_thread_leaves_signals_alone():
    run = trainer(pretrain__epochs=1)
    thread = threading.Thread(target=run.run)
    thread.start()
    thread.join()
    assert run.step == run.steps_per_epoch


def test_no_state_is_written_of_a_run_whose_loss_is_not_finite(tmp_path):
    run = Trainer(settings(), features(), CPU)
    saved = training_states(tmp_path)
    run.model.projector[0].register_forward_hook(
        lambda module, args, out: out * torch.nan if run.step == 3 else out
    )
    with pytest.raises(FloatingPointError, match="since step 3 of 8"):
        run.run(saved)
    state = saved.newest()
    assert state["step"] == 3
    weights = state["updater"]["model"].values()
    assert all(w.isfinite().all() for w in weights if w.is_floating_point())
