"""The page of a run in progress, from files that may be half-written."""

import logging
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from synthetic_run import SyntheticRun

from pipeline.commands import watch
from pipeline.report import figures

STEPS = 140  # 20 epochs of 7


@pytest.fixture(autouse=True)
def made_up(tmp_path, monkeypatch):
    """A run whose curves are where pre-training writes them while it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    run = SyntheticRun(tmp_path)
    live = folder()
    live.mkdir(parents=True)
    for name in ("history.csv", "epochs.csv"):
        shutil.copy(tmp_path / "data/pretrained" / name, live)
    shutil.copy(tmp_path / "reports/throughput.csv", live)
    return run


@pytest.fixture
def without_figures(monkeypatch):
    """Leave the drawing out of pages that are about something else."""
    monkeypatch.setattr(figures, "learning_curves", lambda history: "")
    names = ("lr", "norms", "ranks", "dead", "speed", "wait")
    monkeypatch.setattr(figures, "telemetry", lambda *curves: dict.fromkeys(names, ""))


def folder():
    return Path(".work/live")


def cut(name, rows):
    """Leave the header and the first rows."""
    path = folder() / name
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: 1 + rows]))


def words():
    page = re.sub(r"<(style|title).*?</\1>", "", (folder() / "index.html").read_text(), flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_progress_is_read_from_the_curves():
    for name, rows in (("history.csv", 70), ("epochs.csv", 10), ("throughput.csv", 10)):
        cut(name, rows)
    live = watch.read_live(folder())
    assert (live.step, live.steps, live.epoch, live.ended) == (70, STEPS, 10, False)
    assert live.samples_per_s == pytest.approx(400 - 50 / 8)  # the median of the last five
    assert live.eta_s == pytest.approx(70 * 32 / (400 - 50 / 8))
    watch.write_page(live, folder())
    shown = words()
    assert "Time left 5.7 s as of" in shown
    assert "Step 70 of 140 Epochs done 10 of 20 Speed 394 samples per second" in shown


def test_a_finished_run_has_no_time_left_and_its_page_no_longer_reloads(without_figures):
    watch.watch(folder(), once=True)
    assert "Time left none" in words()
    assert 'http-equiv="refresh"' not in (folder() / "index.html").read_text()
    cut("epochs.csv", 19)
    watch.watch(folder(), once=True)
    assert 'http-equiv="refresh" content="5"' in (folder() / "index.html").read_text()


def test_the_page_of_a_killed_run_shows_how_old_its_news_is(without_figures):
    cut("epochs.csv", 10)
    hour_ago = time.time() - 3600
    os.utime(folder() / "history.csv", (hour_ago, hour_ago))
    watch.watch(folder(), once=True)
    assert "Last news of the run 1 h 0 min ago" in words()


@pytest.mark.parametrize("name", ["history.csv", "epochs.csv", "throughput.csv"])
@pytest.mark.parametrize(
    "content",
    [None, b"", b"\n", b"step,epo", b"epoch,step\n", b"a,b\n1,2\n", b"\xff\0\n\n", b'"\n1'],
)
def test_a_missing_or_half_written_file_is_an_empty_curve(without_figures, name, content):
    path = folder() / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    live = watch.read_live(folder())
    assert getattr(live, name.removesuffix(".csv")).empty
    watch.watch(folder(), once=True)
    assert "Step" in words()


def test_a_file_cut_anywhere_gives_only_complete_rows():
    path = folder() / "history.csv"
    content = path.read_bytes().replace(b"\r\n", b"\n")[:1500]
    rows = watch.read_live(folder()).history
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        history = watch.read_live(folder()).history
        assert len(history) == max(0, content[:length].count(b"\n") - 1)
        assert history.to_numpy().tolist() == rows.iloc[: len(history)].to_numpy().tolist()


def test_a_page_without_any_curves_is_written():
    shutil.rmtree(folder())
    watch.watch(folder(), once=True)
    assert "Time left – as of" in words()
    assert "nothing yet" in (folder() / "index.html").read_text()
    assert sorted(path.name for path in folder().iterdir()) == ["index.html"]


def test_watching_ends_with_a_run_that_was_seen_in_progress(without_figures, monkeypatch):
    finished = (folder() / "epochs.csv").read_text()
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:
            cut("epochs.csv", 3)  # a new run, in place of the finished one
        if len(sleeps) == 5:
            (folder() / "epochs.csv").write_text(finished)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    watch.watch(folder())
    assert sleeps == [watch.EVERY_S] * 5
    assert "Time left none" in words()


@pytest.mark.parametrize("arguments", [["--once"], []])
def test_the_address_is_printed_and_ctrl_c_ends_it(
    without_figures, monkeypatch, caplog, tmp_path, arguments
):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    monkeypatch.setattr(sys, "argv", ["watch.py", *arguments])
    caplog.set_level(logging.INFO)
    watch.main()
    assert f"file://{tmp_path}/.work/live/index.html" in caplog.text
    assert (folder() / "index.html").exists()
