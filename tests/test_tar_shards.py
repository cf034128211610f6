"""Tar shards: same members, same bytes; nothing missing goes unnoticed."""

import os
import tarfile

import pytest

from pipeline.corpus.clips import tar_shards

CLIPS = [("b-_1_0", b"first"), ("a_30000", b""), ("c_5", bytes(70000))]
IDS = [clip_id for clip_id, _ in CLIPS]


@pytest.fixture
def shard(tmp_path):
    tar_shards.write(tmp_path / "00000.tar", CLIPS)
    return tmp_path / "00000.tar"


def test_clips_come_back_in_their_order(shard):
    assert list(tar_shards.read(shard, IDS, "download")) == CLIPS


def test_a_shard_may_be_empty(tmp_path):
    tar_shards.write(tmp_path / "0.tar", [])
    assert list(tar_shards.read(tmp_path / "0.tar", [], "download")) == []


def test_the_same_clips_make_the_same_bytes_at_any_time_for_any_user(shard, tmp_path):
    os.utime(shard, (0, 0))
    tar_shards.write(tmp_path / "again.tar", iter(CLIPS))
    assert (tmp_path / "again.tar").read_bytes() == shard.read_bytes()
    with tarfile.open(shard) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
            assert member.uname == member.gname == ""


def test_members_are_flac_files_named_by_clip(shard):
    with tarfile.open(shard) as tar:
        assert tar.getnames() == ["b-_1_0.flac", "a_30000.flac", "c_5.flac"]


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (IDS[:2], "holds 'c_5.flac' where its ledger has None"),
        ([*IDS, "d"], "lacks 'd'"),
        ([IDS[1], IDS[0], IDS[2]], "holds 'b-_1_0.flac' where its ledger has 'a_30000'"),
    ],
)
def test_other_clips_than_expected_are_an_error(shard, expected, message):
    with pytest.raises(ValueError, match=message):
        list(tar_shards.read(shard, expected, "download"))


@pytest.mark.parametrize("size", [0, 300, 512, 1500, 3000])
def test_a_truncated_shard_is_an_error_that_says_what_to_run(shard, size):
    os.truncate(shard, size)
    with pytest.raises(ValueError, match=r"is damaged.*`dvc pull download`"):
        list(tar_shards.read(shard, IDS, "download"))


def test_what_is_no_tar_is_an_error(shard):
    shard.write_bytes(b"no tar at all " * 100)
    with pytest.raises(ValueError, match="is damaged"):
        list(tar_shards.read(shard, IDS, "download"))
