"""The store of fetched clips survives whatever ends the process."""

import hashlib
import json
import multiprocessing

import pytest

from pipeline.corpus.fetch import clip_store
from pipeline.corpus.fetch.clip_store import ClipStore, Outcome

SHA = hashlib.sha256(b"abc").hexdigest()
OK = Outcome(status="ok", bytes=3, sha256=SHA, duration_s=1.0)


@pytest.fixture
def store(tmp_path):
    """A store that holds the clip "ab_0" and knows that "cd_0" is gone."""
    store = ClipStore(tmp_path / "store")
    store.folder.mkdir()
    store.add("ab_0", OK, b"abc")
    store.add("cd_0", Outcome(status="gone", reason="removed"))
    return store


def test_a_new_process_knows_what_was_done(store):
    again = ClipStore(store.folder)
    assert again.is_settled("ab_0")
    assert again.is_settled("cd_0")
    assert not again.is_settled("ef_0")
    assert again.last("ab_0") == OK
    assert again.last("cd_0") == Outcome(status="gone", reason="removed")
    assert again.read("ab_0") == b"abc"


@pytest.mark.parametrize("status", ["transient", "blocked"])
def test_a_transient_failure_is_not_settled(store, status):
    store.add("cd_0", Outcome(status=status))
    assert not store.is_settled("cd_0")
    assert not ClipStore(store.folder).is_settled("cd_0")


def test_a_line_cut_short_loses_only_its_clip(store):
    journal = store.folder / "journal.jsonl"
    journal.write_text(journal.read_text()[:-20])
    again = ClipStore(store.folder)
    assert again.is_settled("ab_0")
    assert again.last("cd_0") is None


def test_the_next_line_after_one_cut_short_is_kept(store):
    journal = store.folder / "journal.jsonl"
    journal.write_text(journal.read_text()[:-20])
    ClipStore(store.folder).add("ef_0", Outcome(status="gone"))
    assert ClipStore(store.folder).is_settled("ef_0")


def test_bytes_without_a_line_belong_to_no_clip(store):
    pack = store.folder / "packs" / "00000.pack"
    pack.write_bytes(pack.read_bytes() + b"cut short")
    again = ClipStore(store.folder)
    again.add("ef_0", OK, b"abc")
    assert again.read("ab_0") == again.read("ef_0") == b"abc"
    assert again.last("ef_0").offset == len(b"abccut short")


@pytest.mark.parametrize("left", [b"ab", b"", None])
def test_a_clip_whose_pack_is_missing_or_cut_short_is_not_settled(store, left):
    pack = store.folder / "packs" / "00000.pack"
    if left is None:
        pack.unlink()
    else:
        pack.write_bytes(left)
    assert not ClipStore(store.folder).is_settled("ab_0")


def test_a_clip_damaged_on_disk_is_never_returned_and_is_fetched_again(store):
    (store.folder / "packs" / "00000.pack").write_bytes(b"abd")
    assert store.is_settled("ab_0")
    with pytest.raises(
        RuntimeError, match=r"ab_0 in .*00000\.pack is damaged.*Run the stage again"
    ):
        store.read("ab_0")
    assert not ClipStore(store.folder).is_settled("ab_0")


def test_packs_have_a_limited_size(store, monkeypatch):
    monkeypatch.setattr(clip_store, "PACK_BYTES", 7)
    for i in range(4):
        store.add(f"x{i}", OK, b"abc")
    sizes = [p.stat().st_size for p in sorted((store.folder / "packs").iterdir())]
    assert sizes == [6, 6, 3]
    assert [ClipStore(store.folder).read(f"x{i}") for i in range(4)] == [b"abc"] * 4


def test_the_last_outcome_counts(store):
    store.add("ab_0", Outcome(status="gone"))
    assert ClipStore(store.folder).last("ab_0") == Outcome(status="gone")


def test_a_clip_to_retry_is_tried_again(store):
    store.retry("cd_0")
    assert not ClipStore(store.folder).is_settled("cd_0")


def test_the_journal_has_one_json_line_per_attempt(store):
    lines = (store.folder / "journal.jsonl").read_text().strip().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["ab_0", "cd_0"]


def hold(folder, held, done):
    with ClipStore(folder).locked():
        held.set()
        done.wait(30)


def test_a_second_process_may_not_write(store):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(store.folder, held, done))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(RuntimeError, match=r"Another process is fetching clips into .*store"):
            store.locked().__enter__()
    finally:
        done.set()
        other.join()


def test_changes_by_another_process_are_seen_once_the_lock_is_held(store):
    ClipStore(store.folder).add("ef_0", Outcome(status="gone"))
    assert store.last("ef_0") is None
    with store.locked():
        assert store.is_settled("ef_0")


def shard(store, tmp_path, *keys):
    """A finished shard of clips of the store, which keeps it in place of their packs."""
    path = tmp_path / f"{'-'.join(keys)}.tar"
    path.write_bytes(b"head" + b"".join(map(store.read, keys)))
    store.replace_packs(path.name, path, {k: 4 + 3 * i for i, k in enumerate(keys)})
    return path


def test_a_finished_shard_replaces_the_packs_of_its_clips(store, tmp_path):
    store.add("ef_0", OK, b"abc")
    pack = store.folder / "packs" / "00000.pack"
    path = shard(store, tmp_path, "ef_0")
    assert pack.exists()  # of ab_0
    both = shard(store, tmp_path, "ab_0", "ef_0")
    assert not pack.exists()
    store.compact()
    assert [p.name for p in (store.folder / "packs").iterdir()] == [both.name]
    assert both.stat().st_nlink == 2
    assert path.stat().st_nlink == 1
    again = ClipStore(store.folder)
    assert again.read("ab_0") == again.read("ef_0") == b"abc"
    assert again.last("cd_0") == Outcome(status="gone", reason="removed")
    again.add("gh_0", OK, b"abc")
    assert ClipStore(store.folder).read("gh_0") == b"abc"


def test_a_shard_in_the_store_is_linked(store, tmp_path):
    shard(store, tmp_path, "ab_0").unlink()
    assert store.link_shard("ab_0.tar", tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_bytes() == b"headabc"
    assert not store.link_shard("other.tar", tmp_path / "other.tar")


def test_a_process_that_ends_before_compaction_loses_nothing(store, tmp_path):
    shard(store, tmp_path, "ab_0")
    again = ClipStore(store.folder)
    assert again.read("ab_0") == b"abc"
    again.compact()
    lines = (store.folder / "journal.jsonl").read_text().strip().splitlines()
    assert len(lines) == 2
