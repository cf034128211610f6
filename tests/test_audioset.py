"""Source `audioset` against a site on the loopback interface: lists, subsets, the whole stage."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_server import serve
from ruamel.yaml import YAML

import stages.download
from pipeline.commands import queue as download_queue
from pipeline.core.stage import run
from pipeline.corpus import labels
from pipeline.corpus.clips import ledger, tar_shards
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.fetcher import store_folder
from pipeline.corpus.params import AudioSetParams
from pipeline.corpus.sources.audioset import AudioSet

ROOT = Path(__file__).parents[1]
RATE = 8000
HEAD = "# Segments csv\n# num_ytids=2\n# YTID, start_seconds, end_seconds, positive_labels\n"
LISTS = {
    "unbalanced_train": HEAD + '--a_b-c_d_-, 1.000, 3.000, "/m/1,/m/2"\nn404-bbbbbb, 0.000, 2.000,'
    ' "/m/1"\n',
    "balanced_train": HEAD + 'ok-_aaaaaaa, 0.000, 2.000, "/m/2"\n',
    "eval": HEAD.replace("\n", "\r\n") + 'n429-aaaaaa, 0.000, 2.000, "/m/3"\r\n',
}
LABELS = 'index,mid,display_name\n0,/m/1,"Speech, loud"\n1,/m/2,Music\n'


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """An empty repository, as a working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.fixture
def site(tmp_path):
    """A site with lists, labels and recordings."""
    folder = tmp_path / "web"
    folder.mkdir()
    for subset, text in LISTS.items():
        (folder / f"{subset}_segments.csv").write_bytes(text.encode())
    (folder / "class_labels_indices.csv").write_text(LABELS)
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, 5 * RATE)
    for name in ("--a_b-c_d_-", "ok-_aaaaaaa"):
        soundfile.write(folder / f"{name}.wav", wave, RATE)
    with serve(folder) as site:
        yield site


def settings(site, **changes):
    """Section `sources.audioset` for a site."""
    base = site.template.rsplit("/", 1)[0]
    return {
        "subsets": ["unbalanced_train"],
        "lists": f"{base}/{{subset}}_segments.csv",
        "labels": f"{base}/class_labels_indices.csv",
        "url": site.template,
        "clips": "",
        **changes,
    }


def source(site, **changes):
    return AudioSet(AudioSetParams.model_validate(settings(site, **changes)))


def test_lists_are_fetched_once_and_read_as_published(site):
    listed = source(site).segments()
    assert listed == [
        Segment(0, "--a_b-c_d_-", 1.0, 3.0, "/m/1,/m/2"),
        Segment(1, "n404-bbbbbb", 0.0, 2.0, "/m/1"),
    ]
    assert source(site).segments() == listed
    assert site.requests["unbalanced_train_segments.csv"] == 1


def test_subsets_keep_their_order_and_rows_are_numbered_across_them(site):
    listed = source(site, subsets=["eval", "unbalanced_train"]).segments()
    assert [(s.row, s.recording_id) for s in listed] == [
        (0, "n429-aaaaaa"), (1, "--a_b-c_d_-"), (2, "n404-bbbbbb"),
    ]  # fmt: skip


def test_a_clip_in_two_subsets_is_an_error(site):
    (site.folder / "eval_segments.csv").write_text(LISTS["unbalanced_train"])
    with pytest.raises(ValueError, match=r"--a_b-c_d_-_1000 is in two of the subsets"):
        source(site, subsets=["unbalanced_train", "eval"]).segments()


def test_lists_may_be_files(site):
    lists = str(site.folder / "{subset}_segments.csv")
    listed = source(site, lists=lists, labels=str(site.folder / "class_labels_indices.csv"))
    assert listed.is_here()
    assert len(listed.segments()) == 2
    assert listed.label_names() == {"/m/1": "Speech, loud", "/m/2": "Music"}
    assert not site.requests


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (
            "missing.csv",
            None,
            OSError,
            r"missing\.csv cannot be fetched \(HTTP Error 404.*save the",
        ),
        ("trunc-a.csv", LISTS["eval"], OSError, r"trunc-a\.csv (cannot be fetched|ended after)"),
        ("n503-a.csv", None, OSError, r"n503-a\.csv cannot be fetched \(HTTP Error 503"),
        ("html-a.csv", None, ValueError, r"broken row"),
        ("empty.csv", "", ValueError, r"lists no segments"),
    ],
)
def test_an_invalid_list_is_not_cached(site, name, content, error, message):
    if content is not None:
        (site.folder / name).write_bytes(content.encode())
    base = site.template.rsplit("/", 1)[0]
    with pytest.raises(error, match=message):
        source(site, lists=f"{base}/{name}").segments()
    assert [p.name for p in Path(".work").rglob("*.*")] == ["class_labels_indices.csv"]


def test_a_file_that_does_not_list_labels_is_refused(site):
    with pytest.raises(ValueError, match="does not list labels: expected the columns"):
        labels.read_names(site.folder / "eval_segments.csv")


def test_labels_may_have_further_columns_in_any_order(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('display_name, extra, mid, index\n"Speech, loud", x, /m/1, 0\nMusic,y,/m/2,1\n')
    assert labels.read_names(path) == {"/m/1": "Speech, loud", "/m/2": "Music"}
    assert labels.read_ids(path) == ["/m/1", "/m/2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subsets": ["train"]}, "subsets"),
        ({"subsets": []}, "subsets"),
        ({"subsets": ["eval", "eval"]}, "must name each subset once"),
        ({"url": "https://x.org/watch"}, "must contain {recording_id}"),
        ({"subsets": ["eval", "balanced_train"], "lists": "a.csv"}, "must contain {subset}"),
    ],
)
def test_impossible_settings_are_refused(site, changes, message):
    with pytest.raises(ValueError, match=message):
        source(site, **changes)


@pytest.fixture
def params(site):
    """The committed parameters with AudioSet at the loopback site; returns a function."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml")

    def write(network=(), **changes):
        values["source"] = "audioset"
        values["sources"]["audioset"] = settings(site, **changes)
        values["download"] |= {"max_failed": 0.9, "clips_per_shard": 2}
        values["network"] |= {"clips_per_hour": 0.0, "tries": 1, "timeout_s": 2.0} | dict(network)
        values["compute"] |= {"connections": 2}
        yaml.dump(values, Path("params.yaml"))

    write()
    return write


def run_stage():
    run("download", stages.download.main)


def test_the_stage_fetches_the_clips_of_the_subsets(site, params):
    run_stage()
    rows = ledger.read(Path("data/clips/ledger.csv"))
    assert [(row.recording_id, row.status) for row in rows] == [
        ("--a_b-c_d_-", "ok"),
        ("n404-bbbbbb", "gone"),
    ]
    members = list(tar_shards.read(Path("data/clips/00000.tar"), ["--a_b-c_d_-_1000"], "download"))
    assert len(members) == 1


def test_a_second_run_requests_nothing_and_other_subsets_reuse_clips(site, params):
    run_stage()
    first = Path("data/clips/00000.tar").read_bytes()
    site.requests.clear()
    params(network={"timeout_s": 9.0, "clips_per_hour": 100.0, "limit": 3})
    run_stage()
    assert not site.requests
    assert Path("data/clips/00000.tar").read_bytes() == first
    params(subsets=["unbalanced_train", "balanced_train"])
    run_stage()
    assert set(site.requests) == {"balanced_train_segments.csv", "ok-_aaaaaaa.wav"}
    assert Path("data/clips/00000.tar").read_bytes() == first


def test_a_run_that_reaches_its_limit_publishes_nothing_but_keeps_its_clips(site, params, caplog):
    params(network={"limit": 1})
    with pytest.raises(SystemExit):
        run_stage()
    assert "1 of 2 clips were not tried yet" in caplog.records[-1].getMessage()
    assert not Path("data/clips").exists()
    asked = site.requests["--a_b-c_d_-.wav"]
    run_stage()
    assert site.requests["--a_b-c_d_-.wav"] == asked


def output(capsys, *arguments):
    """What a command prints."""
    download_queue.main(arguments)
    return capsys.readouterr().out


def test_the_status_needs_no_network_and_counts_every_clip(site, params, capsys):
    with pytest.raises(SystemExit, match="AudioSet's lists are not here yet"):
        download_queue.main(["status"])
    params(subsets=["unbalanced_train", "balanced_train", "eval"])
    run_stage()
    site.requests.clear()
    text = output(capsys, "status")
    assert not site.requests
    assert "4 clips: 2 here, 1 left" in text
    for line in (r"ok +2 +50.0%", r"gone +1 +25.0%", r"blocked +1 +25.0%"):
        assert re.search(line, text)
    assert "50.0%         1 of         2  Speech, loud" in text
    assert "last 24 h: 4 clips tried, 0.2 per hour" in text
    assert text.startswith("source = audioset\n")


def test_a_closed_pipe_ends_the_status_quietly(site, params):
    run_stage()
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pipeline.commands.queue", "status"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(writer)
    assert done.returncode == 0 and b"Broken pipe" not in done.stderr


def test_the_status_has_no_table_of_labels_if_none_lost_a_clip(site, params, capsys):
    params(subsets=["balanced_train"])
    source(site, subsets=["balanced_train"]).segments()
    text = output(capsys, "status")
    assert "disk: " in text and "labels that lost most" not in text


def test_the_status_may_be_a_table(site, params, capsys):
    params(subsets=["unbalanced_train", "balanced_train", "eval"])
    run_stage()
    assert output(capsys, "status", "--csv").splitlines() == [
        "class,clips,share", "ok,2,0.5000", "gone,1,0.2500", "blocked,1,0.2500", "all,4,1.0000",
    ]  # fmt: skip
    lines = output(capsys, "status", "--markdown").splitlines()
    assert lines[:3] == ["| class | clips | share |", "|---|---:|---:|", "| ok | 2 | 0.5000 |"]


def test_the_exported_ledger_describes_each_clip_from_the_journal(site, params, capsys):
    params(subsets=["unbalanced_train", "balanced_train"], network={"limit": 2})
    with pytest.raises(SystemExit):
        run_stage()
    assert "3 rows in all.csv" in output(capsys, "ledger", "all.csv")
    with open("all.csv", newline="") as handle:
        ok, gone, waiting = csv.DictReader(handle)
    clip = ClipStore(store_folder(site.template)).read("--a_b-c_d_-_1000_3000")
    assert (ok["clip_id"], ok["recording_id"], ok["start_s"], ok["end_s"], ok["labels"]) == (
        "--a_b-c_d_-_1000", "--a_b-c_d_-", "1.0", "3.0", "/m/1,/m/2",
    )  # fmt: skip
    assert (ok["status"], ok["reason"], ok["tries"], ok["duration_s"]) == ("ok", "", "1", "2.0")
    assert (ok["bytes"], ok["sha256"]) == (str(len(clip)), hashlib.sha256(clip).hexdigest())
    assert ok["source"] == site.template.replace("{recording_id}", "--a_b-c_d_-")
    assert ok["tool"].startswith("yt-dlp 20")
    age = datetime.now(UTC) - datetime.fromisoformat(ok["time"])
    assert timedelta(0) <= age < timedelta(hours=1)
    assert (gone["status"], gone["tries"], gone["bytes"]) == ("gone", "1", "")
    assert (waiting["status"], waiting["tries"], waiting["time"]) == ("waiting", "0", "")
    assert sorted(p.name for p in Path().glob("all.csv*")) == ["all.csv"]


def test_the_published_ledger_has_neither_times_nor_tries(site, params):
    run_stage()
    header = Path("data/clips/ledger.csv").read_text().splitlines()[0].split(",")
    assert not {"time", "time_s", "tries", "tool"} & set(header)


def test_a_dry_run_lists_what_would_be_requested(site, params, capsys):
    source(site).segments()
    site.requests.clear()
    params(network={"clips_per_hour": 2.0, "limit": 1, "from_hour": 6.0, "to_hour": 18.0})
    text = output(capsys, "dry-run")
    assert "1 of 2 missing clips would be tried" in text
    assert site.template.replace("{recording_id}", "--a_b-c_d_-") in text
    assert "n404" not in text
    assert "at 2 per hour: 0.5 h" in text
    assert not site.requests


def test_lost_clips_of_a_class_are_tried_again_on_demand(site, params, capsys):
    params(subsets=["unbalanced_train", "eval"])
    run_stage()
    assert "0 clips will be tried again" in output(capsys, "retry", "geo,login")
    assert "1 clips will be tried again by `dvc repro -f download`" in output(
        capsys, "retry", "gone"
    )
    site.requests.clear()
    run_stage()
    assert set(site.requests) == {"n404-bbbbbb.wav", "n429-aaaaaa.wav"}
    with pytest.raises(
        SystemExit, match=r"lost: not a class of failures .* are bad_address, blocked, corrupt, geo"
    ):
        download_queue.main(["retry", "lost"])


def test_a_source_without_a_queue_says_so(params):
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(Path("params.yaml"))
    yaml.dump({**values, "source": "folder"}, Path("params.yaml"))
    with pytest.raises(SystemExit, match="source = 'folder' has no queue"):
        download_queue.main(["status"])


def test_the_journal_records_all_that_is_known_of_an_attempt(site, params):
    run_stage()
    (journal,) = Path(".work").rglob("journal.jsonl")
    lines = {line["key"]: line for line in map(json.loads, journal.read_text().split("\n")[1:])}
    ok, gone = lines["--a_b-c_d_-_1000_3000"], lines["n404-bbbbbb_0_2000"]
    assert ok.keys() == {"key", "status", "bytes", "sha256", "duration_s", "tries", "tool",
                         "time_s", "pack", "offset"}  # fmt: skip
    assert gone.keys() == {"key", "status", "reason", "tries", "tool", "time_s"}
