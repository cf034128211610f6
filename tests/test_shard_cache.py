"""Shards as pieces of work: what is done once, what is done again, and the same bytes always."""

import fcntl
import hashlib
import os
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.core import params
from pipeline.core.settings import ComputeParams
from pipeline.core.shard_folder import check_sum, read_sums
from pipeline.corpus.clips import ledger
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.clips.shard_cache import ShardCache, run_or_part

ROOT = Path(__file__).parents[1]
COMPUTE = params.load("compute", ComputeParams, ROOT / "params.yaml").model_copy(
    update={"workers": 1}
)
made: list[str] = []  # texts of the shards that were made


@dataclass(frozen=True)
class Words:
    """A shard that holds one text, with a usable clip and a lost one."""

    text: str
    rows: list[ledger.Row]

    def identity(self):
        return self.text


def words(*texts):
    return [Words(text, rows_of(number)) for number, text in enumerate(texts)]


def rows_of(number):
    found, lost = (
        ledger.from_segment(Segment(2 * number + i, f"{name}{number}", 0.0, 1.0, "x"))
        for i, name in enumerate(("found", "lost"))
    )
    return [found, lost.failed("download", "gone", "404")]


def write(job, target):
    if job.text == "interrupt":
        raise KeyboardInterrupt
    made.append(job.text)
    target.write_text(job.text)
    return [replace(row, frames=len(job.text)) if row.ok else row for row in job.rows]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    made.clear()
    return tmp_path


def shards(*texts, code="1", function=write):
    return ShardCache("demo", "data/out", ".txt", function, code, words(*texts))


def publish(work):
    """Do what a stage does; return the texts that were made."""
    made.clear()
    new = Path("data/new")
    new.mkdir(parents=True)
    with work.kept():
        paths = work.finish(COMPUTE)
        work.rows(paths)
        work.place(paths, new)
    if Path("data/out").exists():
        Path("data/out").rename("data/old")
        subprocess.run(["rm", "-r", "data/old"], check=True)
    new.rename("data/out")
    work.tidy()
    return list(made)


def content():
    return {path.name: path.read_text() for path in Path("data/out").iterdir()}


def left(suffix):
    return list(Path(".work/demo/shards").glob(f"*{suffix}"))


def kept():
    """Texts of the shards in either part of the work folder; each has a record."""
    folders = {name: Path(".work/demo", name) for name in ("shards", "published")}
    for folder in folders.values():
        assert {p.stem for p in folder.glob("*.txt")} == {p.stem for p in folder.glob("*.json")}
    return {
        name: sorted(path.read_text() for path in folder.glob("*.txt"))
        for name, folder in folders.items()
    }


def test_an_interrupted_stage_goes_on_after_the_last_finished_shard():
    with pytest.raises(KeyboardInterrupt):
        shards("a", "b", "interrupt", "d").finish(COMPUTE)
    assert made == ["a", "b"]
    assert not left(".partial")
    assert publish(shards("a", "b", "c", "d")) == ["c", "d"]


def test_a_published_shard_is_made_again_only_if_what_goes_in_has_changed():
    assert publish(shards("a", "b", "c")) == ["a", "b", "c"]
    inode = Path("data/out/00000.txt").stat().st_ino
    assert publish(shards("a", "new", "c", "more")) == ["new", "more"]
    assert Path("data/out/00000.txt").stat().st_ino == inode  # the same file, not a copy
    grown = content()
    subprocess.run(["rm", "-r", ".work", "data"], check=True)
    publish(shards("a", "new", "c", "more"))
    assert content() == grown


def test_the_work_folder_keeps_what_is_published_linked_and_nothing_before_it():
    publish(shards("a", "b"))
    assert kept() == {"shards": [], "published": ["a", "b"]}
    publish(shards("b", "c"))
    assert kept() == {"shards": [], "published": ["b", "c"]}
    inodes = {path.stat().st_ino for path in Path("data/out").glob("*.txt")}
    assert inodes == {path.stat().st_ino for path in Path(".work/demo/published").glob("*.txt")}


def test_other_code_makes_every_shard_anew():
    publish(shards("a", "b"))
    assert publish(shards("a", "b", code="2")) == ["a", "b"]


def test_rows_are_those_of_the_run_with_what_the_stage_changed_also_where_nothing_is_made():
    publish(shards("a", "bcd"))
    work = shards("a", "bcd")
    work.shards[1].job.rows[1] = work.shards[1].job.rows[1].failed("download", "geo", "not here")
    assert publish(work) == []
    with work.kept():
        found = work.rows(work.finish(COMPUTE))
    assert [(row.row, row.status, row.frames) for row in found] == [
        (0, "ok", 1), (1, "gone", None), (2, "ok", 3), (3, "geo", None),
    ]  # fmt: skip


def test_the_changes_are_those_of_the_usable_clips_wherever_lost_ones_stand_between():
    before, after = shards("abc"), shards("abc")
    before.shards[0].job.rows.reverse()
    publish(before)
    with after.kept():
        assert [row.frames for row in after.rows(after.finish(COMPUTE))] == [3, None]


def test_a_published_shard_that_was_damaged_is_made_again():
    publish(shards("a", "b"))
    path = Path("data/out/00001.txt")
    path.write_text("B")  # also in the work folder: it is one file
    assert publish(shards("a", "b")) == ["b"]
    assert path.read_text() == "b"


def test_a_shard_is_used_again_under_another_number_and_where_dvc_has_removed_the_output():
    publish(shards("a", "b"))
    subprocess.run(["rm", "-r", "data/out"], check=True)
    assert publish(shards("new", "a", "b")) == ["new"]
    assert content()["00002.txt"] == "b"


def test_a_finished_shard_or_record_that_was_cut_off_is_made_again():
    work = shards("a", "b", "c")
    work.finish(COMPUTE)
    work.shards[0].finished.write_text("")
    work.shards[1].finished.with_suffix(".json").write_text('{"sha256": ')
    assert publish(work) == ["a", "b"]
    assert content()["00000.txt"] == "a"


def test_parts_make_every_nth_shard_and_together_all():
    texts = "abcdefg"
    for number, expected in enumerate(("adg", "be", "cf")):
        made.clear()
        shards(*texts).finish(COMPUTE, (number, 3))
        assert "".join(made) == expected
    assert publish(shards(*texts)) == []
    assert "".join(content()[f"{i:05d}.txt"] for i in range(7)) == texts


def test_two_at_work_on_one_shard_at_once_do_not_disturb_each_other():
    def nested(job, target):
        target.write_text("half")
        shards(job.text).finish(COMPUTE)  # another process makes the same one meanwhile
        return write(job, target)

    work = shards("a", function=nested)
    assert publish(work) == ["a", "a"]
    assert content()["00000.txt"] == "a"
    assert not left(".partial")


def test_what_another_run_may_use_is_not_removed_and_goes_with_the_next():
    other, work = shards("a", "b"), shards("a", "b")
    with other.kept():
        paths = other.finish(COMPUTE)
        publish(work)
        assert all(path.exists() for path in paths)
    publish(work)
    assert kept() == {"shards": [], "published": ["a", "b"]}


def test_what_no_run_has_used_for_30_days_is_removed():
    shards("old").finish(COMPUTE)
    (Path(".work/demo/shards") / "x.partial").touch()
    shards("young").finish(COMPUTE)
    for path in (path for s in (".txt", ".json") for path in left(s)):
        if path.with_suffix(".txt").read_text() == "old":
            os.utime(path, (time.time() - 31 * 86400,) * 2)
    publish(shards("a"))
    assert not left(".partial")
    assert kept() == {"shards": ["young"], "published": ["a"]}


def test_a_file_system_without_hard_links_gets_copies(monkeypatch):
    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    publish(shards("a", "b"))
    assert publish(shards("a", "c")) == ["c"]
    assert content()["00000.txt"] == "a"
    assert content()["00001.txt"] == "c"


def test_the_sums_are_those_that_sha256sum_checks():
    publish(shards("a", "b"))
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd="data/out", check=True)
    assert read_sums(Path("data/out"), 2, "demo") == [
        hashlib.sha256(text).hexdigest() for text in (b"a", b"b")
    ]


def test_sums_that_are_missing_or_of_another_output_are_refused():
    publish(shards("a", "b"))
    with pytest.raises(ValueError, match=r"SHA256SUMS has 2 lines, expected 3.*dvc repro -f demo"):
        read_sums(Path("data/out"), 3, "demo")
    Path("data/out/SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match=r"no data/out/SHA256SUMS.*dvc repro -f demo"):
        read_sums(Path("data/out"), 2, "demo")


def test_a_file_with_another_sum_is_refused():
    Path("x").write_text("x")
    check_sum(Path("x"), hashlib.sha256(b"x").hexdigest(), "demo")
    with pytest.raises(ValueError, match=r"x is damaged.*dvc repro -f demo"):
        check_sum(Path("x"), "00", "demo")


@pytest.mark.parametrize(
    ("given", "expected", "instance"),
    [
        ([], None, "demo"),
        (["--shard", "2/8"], (2, 8), "demo-shard-2-of-8"),
        (["--shard=0/1"], (0, 1), "demo-shard-0-of-1"),
    ],
)
def test_a_part_is_named_on_the_command_line(monkeypatch, given, expected, instance):
    monkeypatch.setattr("sys.argv", ["stages/demo.py", *given])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    found = []
    run_or_part("demo", lambda stage, part: found.append((stage.name, part)))
    assert found == [(instance, expected)]


@pytest.mark.parametrize("given", ["--shard", "--shard 8/8", "--shard -1/8", "2/8", "--shard a/b"])
def test_wrong_parts_are_answered_with_the_usage(monkeypatch, given):
    monkeypatch.setattr("sys.argv", ["stages/demo.py", *given.split()])
    with pytest.raises(SystemExit, match=r"stages\.demo \[--shard i/n\], where i is from 0 to n"):
        run_or_part("demo", lambda stage, part: None)


def test_the_lock_is_shared_by_parts():
    with shards("a").kept(), Path(".work/demo/shards.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
