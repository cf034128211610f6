"""A download that is killed repeatedly ends like an uninterrupted one."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from killed_download import CONNECTIONS, TRIES, Comparison, compare

from pipeline.corpus.clips import ledger


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Comparison:
    return compare(tmp_path_factory.mktemp("kills"), clips=32, kills=6)


def test_shards_equal_those_of_an_uninterrupted_run_and_no_partial_set_is_published(ended):
    assert ended.kills == 6
    assert ended.partial == 0
    assert ended.killed.keys() == ended.uninterrupted.keys()
    assert {n for n in ended.killed if ended.killed[n] != ended.uninterrupted[n]} == set()


def test_clips_in_the_store_are_not_requested_again(ended):
    uninterrupted, killed = ended.requests
    under_way = CONNECTIONS * 2 * TRIES  # yt-dlp's and FFmpeg's requests
    assert uninterrupted <= killed <= uninterrupted + ended.kills * under_way
    assert ended.last_requests == 0
    assert ended.leftovers == []


def test_the_ledger_accounts_for_every_clip(ended, tmp_path):
    path = Path(tmp_path, "ledger.csv")
    path.write_bytes(ended.killed["ledger.csv"])
    rows = ledger.read(path)
    assert [row.status for row in rows] == ended.statuses
    assert ledger.counts(rows) == Counter(ended.statuses)
    stored = {}
    for name in sorted(name for name in ended.killed if name.endswith(".tar")):
        with tarfile.open(fileobj=io.BytesIO(ended.killed[name])) as tar:
            stored |= {member.name: member.size for member in tar}
    assert stored == {f"{row.clip_id}.flac": row.bytes for row in rows if row.ok}
    assert sum(row.duration_s for row in rows if row.ok) == 2.0 * ended.statuses.count("ok")
