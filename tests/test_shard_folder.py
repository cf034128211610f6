"""Manifests: a consumer notices what is missing and says what to run."""

import json

import pytest

from pipeline.core import shard_folder
from pipeline.core.shard_folder import Manifest
from pipeline.corpus.clips import ledger
from pipeline.corpus.clips.segments import Segment


def rows(count, failed=()):
    made = [ledger.from_segment(Segment(i, f"r{i}", 0.0, 1.0, "")) for i in range(count)]
    return [r.failed("download", "gone", "x") if r.row in failed else r for r in made]


@pytest.fixture
def folder(tmp_path):
    """A complete output of three shards."""
    complete = ledger.manifest_of(rows(10, failed={9}), clips_per_shard=4)
    for path in shard_folder.shard_paths(tmp_path, complete, ".tar"):
        path.touch()
    ledger.write(tmp_path / "ledger.csv", rows(10, failed={9}))
    shard_folder.write(tmp_path, complete)
    return tmp_path


def test_a_complete_folder_passes(folder):
    assert shard_folder.verify(folder, ".tar", "download") == Manifest(3, 10, 9, 4)


def test_the_file_holds_counts_only(folder):
    assert json.loads((folder / "manifest.json").read_text()) == {
        "shards": 3, "rows": 10, "clips": 9, "clips_per_shard": 4,
    }  # fmt: skip


def test_shards_are_fixed_ranges_of_rows(folder):
    shards = ledger.manifest_of(rows(10), 4).rows_of(rows(10))
    assert [[row.row for row in shard] for shard in shards] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert shard_folder.shard_path(folder, 2, ".tar").name == "00002.tar"


def test_a_missing_shard_is_named(folder):
    (folder / "00001.tar").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks 1 of 3 shards, first 00001\.tar\. .*dvc pull download"
    ):
        shard_folder.verify(folder, ".tar", "download")


def test_a_missing_folder_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json.*`dvc repro resample`"):
        shard_folder.verify(tmp_path / "none", ".tar", "resample")


def test_a_broken_manifest_says_what_to_run(folder):
    for text in ("{", '{"shards": 1}', "[1, 2, 3, 4]", "3"):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is broken.*`dvc repro -f download`"):
            shard_folder.verify(folder, ".tar", "download")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shards": "3"}, "shards is '3', expected a whole number of 0 or more"),
        ({"rows": 10.0}, "rows is 10.0, expected a whole number"),
        ({"clips": True}, "clips is True"),
        ({"clips": None}, "clips is None"),
        ({"clips": -1}, "clips is -1, expected a whole number of 0 or more"),
        ({"clips_per_shard": 0}, "clips_per_shard is 0, expected a whole number of 1 or more"),
        ({"shards": 2}, "10 rows at 4 per shard are 3 shards .*, got 2 with 9"),
        ({"clips": 11}, "10 rows .* with 10 clips at most, got 3 with 11"),
        ({"other": 1}, "expected an object with shards, rows, clips, clips_per_shard, got"),
    ],
)
def test_an_impossible_manifest_is_explained(folder, changed, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ValueError, match=rf"manifest\.json is broken \({message}") as error:
        shard_folder.verify(folder, ".tar", "download")
    assert "`dvc repro -f download`" in str(error.value)


def test_a_shard_that_the_manifest_does_not_have_is_named(folder):
    (folder / "00003.tar").touch()
    with pytest.raises(ValueError, match=r"holds 00003\.tar, but its manifest.* 3 shards only"):
        shard_folder.verify(folder, ".tar", "download")


def test_a_missing_or_broken_ledger_says_what_to_run(folder):
    complete = shard_folder.verify(folder, ".tar", "download")
    (folder / "ledger.csv").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"ledger\.csv, line 1 .*UTF-8.*`dvc repro -f download`"):
        ledger.read_complete(folder, complete, "download")
    (folder / "ledger.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*ledger\.csv.*`dvc repro -f download`"):
        ledger.read_complete(folder, complete, "download")


def test_a_folder_without_clips_is_refused(folder):
    shard_folder.write(folder, ledger.manifest_of(rows(10, failed=set(range(10))), 4))
    with pytest.raises(ValueError, match="holds no clips"):
        shard_folder.verify(folder, ".tar", "download")


def test_a_ledger_of_another_run_is_refused(folder):
    complete = shard_folder.verify(folder, ".tar", "download")
    assert ledger.read_complete(folder, complete, "download") == rows(10, failed={9})
    ledger.write(folder / "ledger.csv", rows(10))
    with pytest.raises(ValueError, match=r"10 ok.*does not belong to its manifest"):
        ledger.read_complete(folder, complete, "download")
