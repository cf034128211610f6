"""Downloads from a record: every failure of a site, with a local server."""

import re

import numpy as np
import pytest
import urllib3.util.retry
from zenodo_server import RECORD, key, serve

from pipeline.config import load_config
from pipeline.hear.fetch.zenodo import downloaded_archive

NETWORK = load_config().network.model_copy(update={"tries": 3, "backoff_s": 0.0, "timeout_s": 5.0})
PARAMS = load_config().hear.sources.zenodo
CONTENT = np.random.default_rng(0).bytes(1_000_003)


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def _server():
    with serve({key(name): CONTENT for name in ("toy", "other")}) as site:
        yield site


@pytest.fixture
def site(_server):
    _server.faults.clear()
    _server.requests.clear()
    _server.retry_after = "0"
    return _server


def fetch(site, task="toy", network=NETWORK, **changes):
    params = PARAMS.model_copy(update={"listing": site.listing, **changes})
    with downloaded_archive(params, task, network) as path:
        return path.read_bytes()


def archives(repository):
    return sorted((repository / ".work/archives").iterdir())


def test_the_published_record_is_the_default():
    assert PARAMS.listing.replace("{record}", str(PARAMS.record)) == (
        "https://zenodo.org/api/records/6332517"
    )
    assert PARAMS.archive.replace("{task}", "esc50-v2.0.0-full") == (
        "hear2021-esc50-v2.0.0-full-48000.tar.gz"
    )


def test_an_archive_is_complete_inside_the_block_and_removed_after(repository, site):
    assert fetch(site) == CONTENT
    assert archives(repository) == []
    assert site.requests == [(str(RECORD), ""), (key("toy"), "")]


def test_an_archive_stays_if_the_block_fails_and_is_not_downloaded_again(repository, site):
    params = PARAMS.model_copy(update={"listing": site.listing})
    with pytest.raises(ZeroDivisionError), downloaded_archive(params, "toy", NETWORK):
        raise ZeroDivisionError
    assert [path.read_bytes() for path in archives(repository)] == [CONTENT]
    site.requests.clear()
    assert fetch(site) == CONTENT
    assert site.requests == [(str(RECORD), "")]


def ranges(site):
    """First byte of each request for the archive."""
    requested = [text for name, text in site.requests if name == key("toy")]
    return [int(text.removeprefix("bytes=").removesuffix("-") or 0) for text in requested]


def test_a_broken_transfer_resumes_at_its_byte(site, caplog):
    site.faults[key("toy")] = ["break"] * 4  # more than `tries`, but each makes progress
    assert fetch(site) == CONTENT
    first, *rest = ranges(site)
    assert first == 0 and len(rest) == 4
    assert rest == sorted(set(rest)) and rest[0] > 400_000
    assert f"transfer broken at byte {rest[0]} of {len(CONTENT)}" in caplog.text


def test_an_interrupted_download_resumes_in_the_next_run(repository, site):
    network = NETWORK.model_copy(update={"tries": 1})
    site.faults[key("toy")] = ["break", 503]
    with pytest.raises(OSError, match="run it again later to resume"):
        fetch(site, network=network)
    (partial,) = archives(repository)
    size = partial.stat().st_size
    assert 400_000 < size < len(CONTENT) and CONTENT.startswith(partial.read_bytes())
    site.requests.clear()
    assert fetch(site) == CONTENT
    assert ranges(site) == [size]


def test_a_site_that_ignores_ranges_sends_the_whole_file(site, caplog):
    site.faults[key("toy")] = ["break", "whole"]
    assert fetch(site) == CONTENT
    assert len(ranges(site)) == 2
    assert "md5" not in caplog.text


def test_transfers_without_progress_end_in_an_error(repository, site, monkeypatch):
    monkeypatch.setattr(site, "archives", {key("toy"): CONTENT[:100]})
    site.faults[key("toy")] = ["break"] * 9  # 50 of 100 bytes arrive, less than a block
    with pytest.raises(OSError, match=r"broke 3 times at byte 0 of 100 .*run it again to resume"):
        fetch(site)
    assert len(ranges(site)) == 3


def test_a_file_with_a_wrong_checksum_is_downloaded_once_more(site, caplog):
    site.faults[key("toy")] = ["corrupt"]
    assert fetch(site) == CONTENT
    assert "its md5 is" in caplog.text


def test_a_checksum_that_stays_wrong_is_an_error_and_nothing_is_kept(repository, site):
    site.faults[key("toy")] = ["corrupt"] * 3
    with pytest.raises(
        OSError, match=r"toy.* does not have the md5 [0-9a-f]{32} that the record lists"
    ):
        fetch(site)
    assert ranges(site) == [0, 0]
    assert [path.stat().st_size for path in archives(repository)] == [0]


def test_a_missing_archive_is_one_immediate_message(site):
    site.faults[key("toy")] = [404]
    with pytest.raises(OSError, match=rf"files/{key('toy')}/content cannot be downloaded \(404"):
        fetch(site)
    assert ranges(site) == [0]


def test_a_missing_record_names_the_parameter(site):
    with pytest.raises(OSError, match=r"records/7 cannot.* \(404.*hear\.sources\.zenodo\.record"):
        fetch(site, record=7)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("resource", ["listing", "archive"])
def test_a_busy_site_is_retried_when_it_says(site, monkeypatch, caplog, status, resource):
    slept = []
    monkeypatch.setattr(urllib3.util.retry.time, "sleep", slept.append)
    site.retry_after = "47"
    site.faults[str(RECORD) if resource == "listing" else key("toy")] = [status]
    assert fetch(site) == CONTENT
    assert slept == [47] or (status == 500 and slept == [])
    assert f"status {status}; next attempt in {47 if slept else 0} s" in caplog.text


def test_a_site_that_stays_busy_is_one_message(site):
    site.faults[str(RECORD)] = [503] * 3
    with pytest.raises(OSError, match=r"downloaded after 3 attempts \(503 .*run it again later"):
        fetch(site)
    assert len(site.requests) == 3


def test_an_unreachable_site_is_one_short_message_with_the_alternative(site, caplog):
    reason = "[Errno 111] Connection refused"
    message = re.escape(f"http://127.0.0.1:1/x cannot be downloaded after 3 attempts ({reason}): ")
    with pytest.raises(OSError, match=rf"^{message}run it again later.*hear\.source = folder"):
        fetch(site, listing="http://127.0.0.1:1/x")
    assert {record.name for record in caplog.records} == {"pipeline.hear.fetch.zenodo"}
    assert [record.getMessage() for record in caplog.records] == [
        f"/x: {reason}; next attempt in 0 s"] * 2  # fmt: skip


def test_the_message_for_an_unknown_task_lists_the_available_ones(site):
    with pytest.raises(
        ValueError, match=r"'esc' is not a task in .*6332517.*available: other, toy"
    ):
        fetch(site, "esc")


@pytest.mark.parametrize(
    "record",
    [
        {"title": "restricted"},
        {
            "files": [
                {"key": "../x", "size": 1, "checksum": "md5:" + "0" * 32, "links": {"self": "x"}}
            ]
        },
        {"files": [{"key": "x", "size": 1, "checksum": "sha1:0", "links": {"self": "x"}}]},
        {"files": [{"key": "x", "size": 1, "checksum": "md5:" + "0" * 32, "links": {}}]},
    ],
)
def test_a_listing_in_another_format_is_refused(site, monkeypatch, record):
    monkeypatch.setattr(site, "record", lambda: record)
    with pytest.raises(OSError, match="does not list the files of a record"):
        fetch(site)


def test_a_second_process_is_refused(site):
    params = PARAMS.model_copy(update={"listing": site.listing})
    with downloaded_archive(params, "toy", NETWORK) as path:
        with pytest.raises(RuntimeError, match=r"Another process is using .*toy"):
            fetch(site)
        assert path.read_bytes() == CONTENT
