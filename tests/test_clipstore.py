"""The store of fetched clips survives whatever ends the process."""

import json

import pytest

from pipeline.clipstore import ClipStore, Outcome

OK = Outcome(status="ok", bytes=3, sha256="00", duration_s=1.0)


@pytest.fixture
def store(tmp_path):
    """A store that holds the clip "ab_0" and knows that "cd_0" is gone."""
    store = ClipStore(tmp_path / "store")
    store.folder.mkdir()
    (tmp_path / "new").write_bytes(b"abc")
    store.add("ab_0", OK, tmp_path / "new")
    store.add("cd_0", Outcome(status="gone", reason="removed"))
    return store


def test_a_new_process_knows_what_was_done(store, tmp_path):
    again = ClipStore(store.folder)
    assert again.is_settled("ab_0")
    assert again.is_settled("cd_0")
    assert not again.is_settled("ef_0")
    assert again.last("ab_0") == OK
    assert again.last("cd_0") == Outcome(status="gone", reason="removed")
    assert again.path("ab_0").read_bytes() == b"abc"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("status", ["transient", "blocked"])
def test_what_may_pass_is_not_settled(store, status):
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


def test_a_clip_that_is_missing_or_cut_short_is_not_settled(store):
    store.path("ab_0").write_bytes(b"a")
    assert not store.is_settled("ab_0")
    store.path("ab_0").unlink()
    assert not store.is_settled("ab_0")


def test_the_last_outcome_counts(store):
    store.add("ab_0", Outcome(status="gone"))
    assert ClipStore(store.folder).last("ab_0") == Outcome(status="gone")


def test_the_journal_has_one_json_line_per_attempt(store):
    lines = (store.folder / "journal.jsonl").read_text().strip().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["ab_0", "cd_0"]
