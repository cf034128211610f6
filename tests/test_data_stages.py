"""Stages download, resample and logmel as they are run: outputs, messages, interruptions."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_server import serve
from stage_runs import MAINS, ROOT, change_params, run_stages, use

from pipeline.core import shard_folder
from pipeline.core.stage import run
from pipeline.corpus.clips import ledger, tar_shards
from pipeline.features import hdf5_shards

OUTPUTS = {"download": "data/clips", "resample": "data/audio16k", "logmel": "data/logmel"}
RATE = 22050


@pytest.fixture(autouse=True)
def _source(repository):
    """The committed parameters and a small source: 3 recordings, 9 segments."""
    folder = repository / "data" / "sample"
    (folder / "videos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("-a", "b_b"):
        soundfile.write(folder / "videos" / f"{name}.ogg", rng.uniform(-0.3, 0.3, 6 * RATE), RATE)
    soundfile.write(folder / "videos" / "still.ogg", np.zeros(6 * RATE), RATE)
    rows = [f'{n}, {s}.000, {s + 2}.000, "/m/1,/m/2"' for n in ("-a", "b_b") for s in (0, 2, 4)]
    rows += ['b_b, 5.000, 9.000, "/m/1"', 'still, 1.000, 3.000, ""', 'lost, 0.000, 2.000, "/m/1"']
    (folder / "segments.csv").write_text("# a list\n" + "\n".join(rows) + "\n")
    change_params({"download": {"clips_per_shard": 4},
                   "network": {"tries": 2, "timeout_s": 2.0, "clips_per_hour": 0.0},
                   "resample": {"max_failed": 0.2}, "compute": {"workers": 1, "connections": 1}},
                  ROOT / "params.yaml")  # fmt: skip


def use_site(site):
    """Make the recordings come from a web site."""
    use("sample", url=site.template.replace(".wav", ".ogg"))


def failure_of(name, caplog):
    """The message with which a stage stops."""
    with pytest.raises(SystemExit) as stop:
        run_stages(name)
    assert stop.value.code == 1
    return caplog.records[-1].getMessage()


def content_of(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def test_segments_become_features_and_a_ledger_that_accounts_for_every_row():
    run_stages("download", "resample", "logmel")
    rows = ledger.read(Path("data/ledger.csv"))
    assert [row.row for row in rows] == list(range(9))
    assert ledger.counts(rows) == {"ok": 7, "gone": 1, "silent": 1}
    assert [(row.recording_id, row.stage) for row in rows if not row.ok] == [
        ("still", "resample"), ("lost", "download"),
    ]  # fmt: skip
    assert [row.frames for row in rows] == [201] * 6 + [101, None, None]
    assert rows[6].duration_s == 1.0

    stored = [hdf5_shards.read(Path(f"data/logmel/0000{i}.h5")) for i in range(3)]
    assert [shard.clip_id for shard in stored] == [
        ["-a_0", "-a_2000", "-a_4000", "b_b_0"], ["b_b_2000", "b_b_4000", "b_b_5000"], [],
    ]  # fmt: skip
    assert stored[0].labels == ["/m/1,/m/2"] * 4
    values = np.concatenate([shard.frames for shard in stored]).astype(np.float64)
    stats = json.loads(Path("data/logmel/stats.json").read_text())
    assert stats["count"] == values.size == (6 * 201 + 101) * 64
    assert stats["clips"] == 7
    assert stats["mean"] == pytest.approx(values.mean(), abs=1e-3)
    assert stats["std"] == pytest.approx(values.std(), abs=1e-3)


def test_every_folder_is_complete_by_its_manifest():
    run_stages("download", "resample", "logmel")
    for folder, suffix, clips in (
        ("clips", ".tar", 8),
        ("audio16k", ".tar", 7),
        ("logmel", ".h5", 7),
    ):
        manifest = shard_folder.verify(Path("data", folder), suffix, folder)
        assert manifest == shard_folder.Manifest(shards=3, rows=9, clips=clips, clips_per_shard=4)
    assert set(content_of("data/clips")) == {
        "00000.tar", "00001.tar", "00002.tar", "ledger.csv", "manifest.json",
    }  # fmt: skip


def forget(*names):
    """Make stages start from scratch."""
    for name in names:
        shutil.rmtree(OUTPUTS[name])
        shutil.rmtree(f".work/{name}" if name != "download" else ".work/clips")


def content_of_all():
    names = ("clips", "audio16k", "logmel")
    return [content_of(f"data/{n}") for n in names], Path("data/ledger.csv").read_bytes()


def test_results_do_not_depend_on_the_number_of_workers():
    run_stages("download", "resample", "logmel")
    one = content_of_all()
    forget("download", "resample", "logmel")
    change_params({"compute": {"workers": 2, "connections": 3}})
    run_stages("download", "resample", "logmel")
    assert content_of_all() == one


def test_parts_and_a_run_that_merges_them_give_the_same_bytes():
    run_stages("download", "resample", "logmel")
    alone = content_of_all()
    forget("logmel", "resample")
    for name in ("resample", "logmel"):
        for number in range(2):
            run(name, partial(MAINS[name], part=(number, 2)), f"shard-{number}-of-2")
            assert not Path(OUTPUTS[name]).exists()
        made = {p: p.stat().st_ino for p in Path(f".work/{name}/shards").glob("*.[th]*")}
        run_stages(name)
        assert {p.stat().st_ino for p in Path(OUTPUTS[name]).iterdir()} >= set(made.values())
    assert content_of_all() == alone


def inodes(folder):
    return {p.name: p.stat().st_ino for p in Path(folder).iterdir() if p.suffix in (".tar", ".h5")}


def test_only_shards_whose_clips_have_changed_are_written_again_and_none_is_kept_twice():
    run_stages("download", "resample", "logmel")
    before = inodes("data/audio16k") | inodes("data/logmel")
    noise = np.random.default_rng(1).uniform(-0.2, 0.2, 6 * RATE)
    soundfile.write("data/sample/videos/-a.ogg", noise, RATE)
    with Path("data/sample/segments.csv").open("a") as segments:
        segments.write('still, 0.000, 1.000, ""\nb_b, 1.000, 3.000, ""\n')
    run_stages("download", "resample", "logmel")
    after = inodes("data/audio16k") | inodes("data/logmel")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {f"{shard}{s}" for shard in ("00000", "00002") for s in (".tar", ".h5")}
    stored = {p.stat().st_ino for p in Path(".work").glob("*/published/*.[th]*")}
    assert stored == set(after.values())  # the same files, not copies
    assert not list(Path(".work").glob("[rl]*/shards/*"))
    grown = content_of_all()
    forget("logmel", "resample")
    run_stages("resample", "logmel")
    assert content_of_all() == grown


def test_a_limit_on_failures_costs_no_shard_twice(caplog):
    run_stages("download")
    change_params({"resample": {"max_failed": 0.05}})
    failure_of("resample", caplog)
    made = {path: path.stat().st_mtime_ns for path in Path(".work/resample/shards").glob("*.tar")}
    assert len(made) == 3
    change_params({"resample": {"max_failed": 0.2}})
    run_stages("resample")
    assert {p.stat().st_mtime_ns for p in Path("data/audio16k").glob("*.tar")} == {*made.values()}


def test_damaged_resampled_audio_is_noticed(caplog):
    run_stages("download", "resample")
    path = Path("data/audio16k/00001.tar")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = failure_of("logmel", caplog)
    assert "00001.tar is damaged: its SHA-256 is" in message
    run_stages("resample", "logmel")  # the first notices it, too


def test_a_second_download_requests_no_recording_even_with_other_limits():
    with serve(Path("data/sample/videos")) as site:
        use_site(site)
        run_stages("download")
        first = content_of("data/clips")
        assert site.requests["-a.ogg"] >= 3
        site.requests.clear()
        change_params({"download": {"max_failed": 0.9}, "network": {"tries": 7, "timeout_s": 9.0}})
        run_stages("download")
        assert not site.requests
    assert content_of("data/clips") == first


def test_a_fetched_clip_is_stored_once_and_an_unchanged_shard_is_not_rewritten():
    run_stages("download")
    packs = {p.name: p.stat() for p in next(Path(".work/clips").iterdir()).glob("packs/*")}
    shards = {p.name: p.stat().st_ino for p in Path("data/clips").glob("*.tar")}
    assert {state.st_ino for state in packs.values()} <= set(shards.values())
    assert all(name.endswith(".tar") for name in packs)
    soundfile.write("data/sample/videos/lost.ogg", np.ones(3 * RATE) / 3, RATE)
    run_stages("download")
    again = {p.name: p.stat().st_ino for p in Path("data/clips").glob("*.tar")}
    assert {name for name in shards if again[name] != shards[name]} == {"00002.tar"}


def test_other_shards_are_packed_from_the_same_clips():
    run_stages("download")
    change_params({"download": {"clips_per_shard": 9}})
    run_stages("download")
    rows = ledger.read(Path("data/clips/ledger.csv"))
    usable = [row.clip_id for row in rows if row.ok]
    assert [c for c, _ in tar_shards.read(Path("data/clips/00000.tar"), usable, "x")] == usable


def test_a_clip_that_arrives_later_changes_one_shard_only():
    run_stages("download")
    before = content_of("data/clips")
    soundfile.write("data/sample/videos/lost.ogg", np.ones(3 * RATE) / 3, RATE)
    run_stages("download")
    after = content_of("data/clips")
    assert {name for name in after if after[name] != before[name]} == {
        "00002.tar", "ledger.csv", "manifest.json",
    }  # fmt: skip


def test_too_many_unavailable_clips_stop_the_download(caplog):
    change_params({"download": {"max_failed": 0.1}})
    message = failure_of("download", caplog)
    assert "1 of 9 clips (11.1%) failed, more than download.max_failed = 10.0%" in message
    assert "'gone' (1), for example lost_0: there is no file lost.ogg" in message
    path = Path(message.split("All are in ")[1].split(". Fix")[0])
    assert ledger.counts(ledger.read(path)) == {"ok": 8, "gone": 1}
    assert not Path("data/clips").exists()


def test_too_many_unusable_clips_stop_resampling(caplog):
    run_stages("download")
    change_params({"resample": {"max_failed": 0.05}})
    message = failure_of("resample", caplog)
    assert "1 of 8 clips (12.5%) failed, more than resample.max_failed = 5.0%" in message
    assert "'silent' (1), for example still_1000: peak -1000.0 dB" in message


def test_no_clip_left_stops_even_without_a_limit(caplog):
    change_params({"download": {"max_failed": 1.0}})
    for path in Path("data/sample/videos").iterdir():
        path.unlink()
    assert "None of 9 clips is left" in failure_of("download", caplog)


def test_a_broken_list_stops_before_anything_is_fetched(caplog):
    with Path("data/sample/segments.csv").open("a") as segments:
        segments.write("x, 9.0, 8.0, y\n")
    assert "line 11: end 8.0 must be later than start 9.0" in failure_of("download", caplog)


@pytest.mark.parametrize(
    ("consumer", "folder", "producer"),
    [("resample", "data/clips", "download"), ("logmel", "data/audio16k", "resample")],
)
def test_a_partial_pull_is_noticed(caplog, consumer, folder, producer):
    message = failure_of(consumer, caplog)
    assert f"There is no {folder}/manifest.json" in message
    assert f"`dvc repro {producer}`" in message
    run_stages("download", "resample")
    Path(folder, "00001.tar").unlink()
    message = failure_of(consumer, caplog)
    assert f"{folder} lacks 1 of 3 shards, first 00001.tar" in message
    assert f"`dvc pull {producer}`" in message


def test_features_at_another_rate_than_the_audio_are_refused(caplog):
    run_stages("download", "resample")
    change_params({"logmel": {"sample_rate": 22050}})
    message = failure_of("logmel", caplog)
    assert "-a_0 has 16000 Hz, expected logmel.sample_rate = 22050 Hz" in message


def test_a_full_disk_is_one_message_without_a_traceback(caplog, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device", "data/clips/00000.tar")

    monkeypatch.setattr(tar_shards.tarfile.TarFile, "addfile", no_space)
    message = failure_of("download", caplog)
    assert "No space left on device" in message
    assert not Path("data/clips").exists()


def start_download():
    """The stage in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.download"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stalled_download_ends_at_once_on_a_signal(how):
    Path("data/sample/videos/-a.ogg").rename("data/sample/videos/drip-a.ogg")
    Path("data/sample/segments.csv").write_text('drip-a, 0.000, 2.000, ""\n')
    with serve(Path("data/sample/videos")) as site:
        use_site(site)
        change_params({"network": {"timeout_s": 30.0}})
        process = start_download()
        while process.poll() is None and site.drops < 5:
            time.sleep(0.01)
        process.send_signal(how)
        signaled = time.monotonic()
        _, messages = process.communicate()
        assert time.monotonic() - signaled < 20  # and not timeout_s
        assert process.returncode == 130, messages
        sent = site.drops
        time.sleep(0.5)
        assert site.drops <= sent + 2  # FFmpeg has ended, too
    assert "Traceback" not in messages


def test_a_download_that_waits_for_its_turn_ends_at_once_on_a_signal():
    with serve(Path("data/sample/videos")) as site:
        use_site(site)
        change_params({"network": {"clips_per_hour": 1.0}})
        process = start_download()
        while process.poll() is None and not list(Path(".work").rglob("journal.jsonl")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        signaled = time.monotonic()
        _, messages = process.communicate()
        assert time.monotonic() - signaled < 20  # and not an hour
    assert process.returncode == 130, messages
    assert len(site.times) <= 5  # of one clip: yt-dlp's and FFmpeg's


def test_two_downloads_at_once_are_refused():
    with serve(Path("data/sample/videos")) as site:
        use_site(site)
        change_params({"network": {"clips_per_hour": 1.0}})
        first = start_download()
        while first.poll() is None and not list(Path(".work").rglob("journal.jsonl")):
            time.sleep(0.01)
        change_params({"download": {"clips_per_shard": 9}})
        second = start_download()
        _, messages = second.communicate()
        assert second.returncode == 1
        assert "Another process is fetching clips into" in messages
        first.send_signal(signal.SIGTERM)
        first.communicate()
        assert first.returncode == 130


def test_an_interrupted_download_says_how_to_go_on():
    with serve(Path("data/sample/videos")) as site:
        use_site(site)
        site.delay_s = 0.1
        process = start_download()
        while process.poll() is None and sum(site.requests.values()) < 8:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate()
    assert process.returncode == 130
    assert "interrupted; nothing was published. Run it again." in messages
    assert "Traceback" not in messages
    assert not Path("data/clips").exists()
