"""Fetching clips from a web site and from files: exact cuts, classes of failures, going on."""

import errno
import gc
import io
import os
import random
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from signal import SIGINT

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
from fake_clock import FakeClock
from media_server import serve
from yt_dlp import YoutubeDL
from yt_dlp.utils import DownloadError

from pipeline.core.settings import NetworkParams
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch import cutting, download_ledger, look_up, requirements
from pipeline.corpus.fetch import fetcher as fetching
from pipeline.corpus.fetch import media as fetching_media
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.download_ledger import clip_key
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.fetch.fetcher import Fetcher
from pipeline.corpus.fetch.rate_limit import Gate

RATE = 44100
LENGTH_S = 30
BEHAVIOURS = [
    "media403",
    "media404",
    "media429",
    "html",
    "reset",
    "hang",
    "norange",
    "slow",
    "trunc",
    "drip",
    "s503x1",
    "s503x2",
    "s429x1",
    "s429x2",
    "mediatofile",
]
PARAMS = NetworkParams(
    tries=2, timeout_s=1.0, backoff_s=0.02, clips_per_hour=0.0, limit=0, from_hour=0.0,
    to_hour=24.0, refusals=3, pause_s=0.2, longest_pause_s=1.0, pauses=2, cookies="", proxy="",
    max_tool_age_days=90, look_up_mb=1.0,
)  # fmt: skip


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def signal():
    """Stereo samples of a known recording; smooth noise, so that only one lag fits."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((LENGTH_S * RATE, 2))
    smooth = np.stack([np.convolve(n, np.hanning(50), "same") for n in noise.T], axis=1)
    return np.round(smooth / np.abs(smooth).max() * 20000).astype(np.int16)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory, signal):
    """A folder with the known recording in several formats, and bad ones."""
    folder = tmp_path_factory.mktemp("recordings")
    soundfile.write(folder / "ok-a.wav", signal, RATE)
    soundfile.write(folder / "ok-a.ogg", signal, RATE, format="OGG", subtype="VORBIS")
    ffmpeg("-i", folder / "ok-a.wav", "-c:a", "aac", "-b:a", "192k", folder / "ok-a.m4a")
    ffmpeg("-i", folder / "ok-a.wav", "-c:a", "libopus", "-b:a", "192k", folder / "ok-a.webm")
    aac = ["-i", folder / "ok-a.wav", "-c:a", "aac", "-b:a", "192k"]
    film = ["-f", "lavfi", "-i", f"testsrc=d={LENGTH_S}:s=64x64:r=10"]
    ffmpeg(*film, *aac, "-c:v", "libx264", "-g", 50, folder / "ok-film.mp4")
    ffmpeg(*aac, "-movflags", "+empty_moov+default_base_moof", "-frag_duration", 5_000_000,
           folder / "ok-fragmented.m4a")  # fmt: skip
    # The site's files have an index entry every 10 s.
    ffmpeg("-i", folder / "ok-a.wav", "-c:a", "libopus", "-b:a", "192k", "-cluster_time_limit",
           10_000, "-cluster_size_limit", 10_000_000, folder / "ok-cues.webm")  # fmt: skip
    soundfile.write(folder / "ok-14s.wav", signal[: 14 * RATE], RATE)
    (folder / "ok-corrupt.wav").write_bytes(np.random.default_rng(1).bytes(100_000))
    (folder / "ok-empty.wav").touch()
    ffmpeg("-f", "lavfi", "-i", "testsrc=d=25:s=64x64:r=5", "-f", "matroska", folder / "film.mkv")
    shutil.move(folder / "film.mkv", folder / "ok-silentfilm.wav")
    shutil.copy(folder / "ok-a.wav", folder / "ok-b.wav")
    shutil.copy(folder / "ok-a.m4a", folder / "ok-moovend.wav")  # its index is behind its audio
    for behaviour in BEHAVIOURS:
        shutil.copy(folder / "ok-a.wav", folder / f"{behaviour}-a.wav")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _collect_before_other_tests():
    yield
    gc.collect()


@pytest.fixture
def site(recordings):
    with serve(recordings) as site:
        yield site


@pytest.fixture
def fetcher(tmp_path):
    """A function that makes a fetcher for a URL template, as a new process would."""

    def make(template, **params):
        store = ClipStore(tmp_path / "store")
        changed = PARAMS.model_copy(update=params)
        return Fetcher(template, store, tmp_path / "partial", changed)

    return make


def segment(recording_id, start_s=10.0, end_s=20.0, row=0):
    return Segment(row, recording_id, start_s, end_s, "/m/1")


def clip_of(fetcher, asked):
    """The fetched clip of a segment, as a file."""
    return io.BytesIO(fetcher.store.read(clip_key(asked)))


def fetch_one(fetcher, asked):
    """The ledger's row and the samples (None if failed) of one segment."""
    (row,) = fetcher.run([asked], connections=1)
    if not row.ok:
        return row, None
    samples, rate = soundfile.read(clip_of(fetcher, asked), dtype="int16")
    assert rate == RATE
    return row, samples


def lag(clip, expected):
    """Samples that a clip is late, by cross-correlation of the first channel."""
    size = len(clip) + len(expected)
    spectra = [np.fft.rfft(x[:, 0].astype(float), size) for x in (clip, expected)]
    best = int(np.argmax(np.fft.irfft(spectra[0] * spectra[1].conj(), size)))
    return best if best < size // 2 else best - size


CUTS = [(0.0, 10.0), (0.5, 3.0), (10.0, 20.0), (12.34, 15.68), (20.0, 30.0)]


def fetch_cuts(fetcher, template):
    """Samples (float) of the known recording's cuts, with start, end and rate."""
    fetch = fetcher(template)
    asked = [segment("ok-a", *cut, row=i) for i, cut in enumerate(CUTS)]
    for one, row in zip(asked, fetch.run(asked, connections=2), strict=True):
        assert row.ok, row.reason
        samples, rate = soundfile.read(clip_of(fetch, one))
        assert row.duration_s == pytest.approx(one.duration_s, abs=1.1 / rate)
        yield one.start_s, one.end_s, samples, rate


@pytest.mark.parametrize("way", ["web", "file"])
def test_cuts_of_a_wav_have_exactly_the_samples_of_the_segments(
    fetcher, site, recordings, signal, way
):
    template = site.template if way == "web" else str(recordings / "{recording_id}.wav")
    for start_s, end_s, samples, _ in fetch_cuts(fetcher, template):
        expected = signal[round(start_s * RATE) : round(end_s * RATE)]
        np.testing.assert_array_equal(samples * 2**15, expected)


def test_cuts_of_an_ogg_equal_the_decoded_recording(fetcher, recordings):
    recording, _ = soundfile.read(recordings / "ok-a.ogg")
    for start_s, end_s, samples, _ in fetch_cuts(fetcher, str(recordings / "{recording_id}.ogg")):
        expected = recording[round(start_s * RATE) : round(end_s * RATE)]
        np.testing.assert_allclose(samples, expected, rtol=0, atol=0.6 / 2**15)


@pytest.mark.parametrize("name", ["ok-film.mp4", "ok-fragmented.m4a", "ok-cues.webm"])
def test_cuts_of_the_containers_used_on_the_web_have_exact_lengths(fetcher, site, signal, name):
    recording_id, suffix = name.split(".")
    fetch = fetcher(site.template.replace("wav", suffix))
    asked = [segment(recording_id, *cut, row=i) for i, cut in enumerate(CUTS[:4])]
    for one, row in zip(asked, fetch.run(asked, connections=2), strict=True):
        assert row.ok, row.reason
        samples, rate = soundfile.read(clip_of(fetch, one))
        assert abs(len(samples) - one.duration_s * rate) <= 1
        times = np.arange(len(samples)) / rate + one.start_s
        source = np.arange(len(signal)) / RATE
        expected = np.stack([np.interp(times, source, c) for c in signal.T], axis=1)
        assert abs(lag(samples, expected)) <= 0.025 * rate


@pytest.mark.parametrize("suffix", ["m4a", "webm"])
def test_cuts_of_a_video_s_audio_track_are_on_time(fetcher, recordings, signal, suffix):
    template = str(recordings / f"{{recording_id}}.{suffix}")
    for start_s, end_s, samples, rate in fetch_cuts(fetcher, template):
        times = np.arange(round((end_s - start_s) * rate)) / rate + start_s
        source = np.arange(len(signal)) / RATE
        expected = np.stack([np.interp(times, source, c) for c in signal.T], axis=1)
        assert abs(lag(samples, expected)) <= 0.002 * rate


def test_a_clip_keeps_rate_and_channels_and_is_described_in_the_ledger(fetcher, recordings):
    fetch = fetcher(str(recordings / "{recording_id}.wav"))
    row, _ = fetch_one(fetch, segment("ok-a"))
    clip = clip_of(fetch, segment("ok-a"))
    info = soundfile.info(clip)
    assert (info.format, info.subtype, info.channels) == ("FLAC", "PCM_16", 2)
    assert (row.status, row.stage, row.reason) == ("ok", "", "")
    assert (row.bytes, row.duration_s, row.clip_id) == (len(clip.getvalue()), 10.0, "ok-a_10000")
    assert len(row.sha256) == 64


@pytest.mark.parametrize(
    ("name", "status", "reason", "requests"),
    [
        ("n404", "gone", "HTTP Error 404", 1),
        ("n410", "gone", "HTTP Error 410", 1),
        ("n451", "gone", "HTTP Error 451", 1),
        ("n401", "login", "HTTP Error 401", 1),
        ("n403", "login", "HTTP Error 403", 1),
        ("n429", "blocked", "HTTP Error 429", 2),
        ("n503", "transient", "HTTP Error 503", 2),
        ("missing", "gone", "HTTP Error 404", 1),
        ("media404-a", "gone", "404 Not Found", None),
        ("media403-a", "transient", "403 Forbidden", None),
        ("media429-a", "blocked", "429 Too Many Requests", None),
        ("reset-a", "transient", "", 2),
        ("hang-a", "transient", "timed out", None),
        ("trunc-a", "transient", "", None),
        ("drip-a", "transient", "no complete clip within 1 s", None),
        ("html-a", "no_audio", "leads to a page", 2),
        ("loop-a", "bad_address", "redirects without an end", 6),
        ("tofile-a", "bad_address", "file://", 1),
        ("mediatofile-a", "bad_address", "'file' not on whitelist", 2),
        ("manifest-a", "bad_address", "'file' not on whitelist", 4),
        ("video-a", "bad_address", "names media at file:", 1),
        ("ok-silentfilm", "no_audio", "matches no streams", None),
        ("ok-corrupt", "corrupt", "Invalid data", None),
        ("ok-empty", "corrupt", "", None),
        ("ok-14s", "short", "the recording ends before it: 0.000 of 10.000 s", None),
    ],
)
def test_a_failure_has_its_class_and_reason(
    fetcher, site, tmp_path, monkeypatch, name, status, reason, requests
):
    monkeypatch.setattr(cutting, "PATIENCE", 1 if name == "drip-a" else 10)
    fetch = fetcher(site.template)
    row, _ = fetch_one(fetch, segment(name, 18.0, 28.0))
    assert (row.status, row.stage) == (status, "download")
    assert reason in row.reason
    assert row.bytes is row.duration_s is None
    if requests is not None:
        assert site.requests[f"{name}.wav"] == requests
    assert files_of(tmp_path) == {"store/journal.jsonl", "store/lock"}


def files_of(folder):
    """Every file in a folder, by its path there."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["ok-a", "ok-moovend", "norange-a", "slow-a", "s429x2-a", "s503x2-a"]
)
def test_quirks_of_a_site_that_serves_cost_no_clip(fetcher, site, signal, tmp_path, name):
    row, samples = fetch_one(fetcher(site.template, tries=3), segment(name))
    assert (row.status, row.reason, len(samples)) == ("ok", "", 10 * RATE)
    assert abs(lag(samples, signal[10 * RATE : 20 * RATE])) <= 0.002 * RATE
    assert files_of(tmp_path) == {"store/journal.jsonl", "store/lock", "store/packs/00000.pack"}


@pytest.mark.parametrize(
    ("name", "tries"),
    [
        ("ok-corrupt", 2),
        ("ok-silentfilm", 2),
        ("html-a", 2),
        ("ok-14s", 2),
        ("media403-a", 2),
        ("n503", 4),
        ("n404", 1),
        ("n401", 1),
    ],
)
def test_the_number_of_tries_depends_on_the_failure(fetcher, site, name, tries):
    fetch = fetcher(site.template, tries=4)
    for _ in range(2):
        site.requests.clear()
        row, _ = fetch_one(fetch, segment(name, 18.0, 28.0))
        assert fetch.store.last(clip_key(segment(name, 18.0, 28.0))).tries == tries
        fetch = fetcher(site.template, tries=4)
    assert bool(site.requests) == (row.status == "transient")  # a later run tries these alone


def test_a_page_without_an_end_costs_one_clip_and_is_tried_once(fetcher, site):
    asked = [segment(name, row=i) for i, name in enumerate(["ok-a", "endless-a", "ok-b"])]
    rows = fetcher(site.template).run(asked, connections=2)
    assert [row.status for row in rows] == ["ok", "bad_address", "ok"]
    assert rows[1].reason == "its page is longer than network.look_up_mb = 1 MB"
    fetcher(site.template).run(asked, connections=2)
    assert site.requests["endless-a.wav"] == 1


def test_a_page_is_read_up_to_a_limit(fetcher, site):
    row, _ = fetch_one(fetcher(site.template), segment("endless-a"))
    assert row.status == "bad_address"
    assert 1e6 < site.bytes_sent < 20e6  # what the sockets hold is sent but not read


def test_a_look_up_that_makes_ever_more_requests_is_given_up(fetcher, site, monkeypatch):
    def follow(self, url, **_):
        while True:
            self.urlopen(url).read()

    monkeypatch.setattr(YoutubeDL, "extract_info", follow)
    row, _ = fetch_one(fetcher(site.template, look_up_mb=100.0), segment("html-a"))
    assert (row.status, site.requests["html-a.wav"]) == ("bad_address", look_up.REQUESTS)


def test_a_page_that_takes_too_long_is_given_up(fetcher, site, monkeypatch):
    monkeypatch.setattr(look_up, "PATIENCE", 0)
    row, _ = fetch_one(fetcher(site.template, tries=1), segment("html-a"))
    assert (row.status, row.reason) == ("transient", "its page does not end within 0 s")


@pytest.mark.parametrize(
    "error", [OverflowError, MemoryError, RecursionError, AssertionError, KeyError, OSError]
)
def test_whatever_an_extractor_raises_costs_its_clip_alone(fetcher, site, monkeypatch, error):
    extract = YoutubeDL.extract_info

    def fail(self, url, **options):
        if "ok-b" in url:
            raise error("x")
        return extract(self, url, **options)

    monkeypatch.setattr(YoutubeDL, "extract_info", fail)
    asked = [segment("ok-b"), segment("ok-a", row=1)]
    rows = fetcher(site.template).run(asked, connections=1)
    assert [row.status for row in rows] == ["transient", "ok"]
    assert error.__name__ in rows[0].reason


def test_too_many_open_files_stop_the_run_and_blame_no_clip(fetcher, site, monkeypatch):
    def fail(*_, **__):
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            raise DownloadError("x") from error

    monkeypatch.setattr(YoutubeDL, "extract_info", fail)
    fetch = fetcher(site.template)
    with pytest.raises(OSError, match="Too many open files while"):
        fetch.run([segment("ok-a")], connections=1)
    assert fetch.store.last(clip_key(segment("ok-a"))) is None


def test_refused_media_are_looked_up_again(fetcher, site):
    lookups = []
    fetch = fetcher(site.template, tries=4)
    resolve = fetching_media.resolve

    def counted(ydl, url):
        lookups.append(url)
        return resolve(ydl, url)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching_media, "resolve", counted)
        fetch_one(fetch, segment("media403-a"))
    assert len(lookups) == 2


def test_content_that_was_bad_once_is_fetched_at_the_second_attempt(fetcher, site, recordings):
    (recordings / "ok-repaired.wav").write_bytes(b"x" * 1000)
    fetch = fetcher(site.template)

    def repair(attempt, *_):
        shutil.copy(recordings / "ok-a.wav", recordings / "ok-repaired.wav")
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "back_off_s", repair)
        row, _ = fetch_one(fetch, segment("ok-repaired"))
    assert row.ok
    assert fetch.store.last(clip_key(segment("ok-repaired"))).tries == 2


def test_a_corrupt_file_is_read_once(fetcher, recordings):
    fetch = fetcher(str(recordings / "{recording_id}.wav"))
    fetch_one(fetch, segment("ok-corrupt"))
    assert fetch.store.last(clip_key(segment("ok-corrupt"))).tries == 1


@pytest.mark.parametrize(
    ("status", "before", "now", "again"),
    [
        ("login", {}, {"cookies": "c.txt"}, True),
        ("login", {"cookies": "c.txt"}, {"cookies": "c.txt"}, False),
        ("login", {}, {"proxy": "http://a:1"}, False),
        ("geo", {}, {"proxy": "http://a:1"}, True),
        ("geo", {"proxy": "http://u:p@a:1"}, {"proxy": "http://a:1", "cookies": "c.txt"}, False),
        ("geo", {"proxy": "http://a:1"}, {"proxy": "http://b:1"}, True),
        ("geo", {"proxy": "http://a:1"}, {}, False),
        ("gone", {}, {"proxy": "http://a:1", "cookies": "c.txt"}, False),
    ],
)
def test_what_an_account_or_proxy_may_unlock_is_tried_again_with_one(
    fetcher, site, tmp_path, monkeypatch, status, before, now, again
):
    monkeypatch.chdir(tmp_path)
    Path("c.txt").write_text(COOKIES)
    first = fetcher(site.template, **before)

    def refuse(*_):
        raise UnavailableError(status, "not here")

    monkeypatch.setattr(fetching_media, "resolve", refuse)
    fetch_one(first, segment("ok-a"))
    journal = (tmp_path / "store" / "journal.jsonl").read_text()
    assert "u:p" not in journal
    assert fetcher(site.template, **now).is_settled(segment("ok-a")) == (not again)


@pytest.mark.parametrize(
    ("name", "status"),
    [("missing", "gone"), ("ok-corrupt", "corrupt"), ("ok-empty", "corrupt"),
     ("ok-silentfilm", "no_audio")],
)  # fmt: skip
def test_files_fail_in_the_same_classes(fetcher, recordings, name, status):
    row, _ = fetch_one(fetcher(str(recordings / "{recording_id}.wav")), segment(name))
    assert row.status == status
    assert str(recordings) not in row.reason


def test_a_transient_fault_is_tried_again(fetcher, site):
    row, samples = fetch_one(fetcher(site.template), segment("s503x1-a"))
    assert row.ok
    assert len(samples) == 10 * RATE


def test_transient_failures_are_tried_as_often_as_allowed_and_tries_are_recorded(fetcher, site):
    fetch = fetcher(site.template, tries=3)
    row, _ = fetch_one(fetch, segment("s503x2-a"))
    assert row.ok
    assert fetch.store.last(clip_key(segment("s503x2-a"))).tries == 3
    row, _ = fetch_one(fetch, segment("n503"))
    assert site.requests["n503.wav"] == fetch.store.last(clip_key(segment("n503"))).tries == 3
    assert fetch.store.last(clip_key(segment("n503"))).tool.startswith("yt-dlp 20")


def test_a_refused_clip_goes_back_to_the_end_of_the_queue(fetcher, site):
    asked = [segment("s429x1-a"), segment("ok-a", row=1), segment("n404", row=2)]
    rows = fetcher(site.template).run(asked, connections=1)
    assert [row.status for row in rows] == ["ok", "ok", "gone"]
    names = list(site.requests)
    assert names == ["s429x1-a.wav", "ok-a.wav", "n404.wav"]
    assert site.requests["s429x1-a.wav"] >= 2


@pytest.mark.parametrize("name", ["s429x1-a", "s503x1-a"])
def test_retry_after_is_respected(fetcher, site, name):
    site.retry_after = "100"
    fetch = fetcher(site.template)
    fetch._clock = clock = FakeClock()
    fetch._gate = Gate(fetch.params, clock, random.Random(0))
    row, _ = fetch_one(fetch, segment(name))
    assert row.ok
    assert 100 <= clock.now() <= 110


def test_a_site_that_refuses_everything_gets_few_requests_and_then_none(fetcher, site):
    asked = [segment("ok-a"), *(segment(f"n429-{i}", row=i) for i in range(1, 30))]
    fetch = fetcher(site.template, pauses=2, pause_s=0.3, refusals=3)
    message = (
        r"after 2 pauses: .*HTTP Error 429.* 1 of 30 clips are done and kept; nothing was "
        r"published\. Go on .*network\.cookies"
    )
    with pytest.raises(RuntimeError, match=message):
        fetch.run(asked, connections=4)
    refused = [t for t, h in zip(site.times, site.headers, strict=True) if "Range" not in h]
    assert len(refused) <= 1 + 4 + 3 + 2  # one served, those under way, three in a row, trials
    assert sum(site.requests[f"n429-{i}.wav"] for i in range(1, 30)) <= 4 + 2 + 2
    again = fetcher(site.template).store
    assert again.is_settled(clip_key(asked[0]))
    assert not any(again.is_settled(clip_key(s)) for s in asked[1:])


def test_a_run_stops_at_its_limit_and_the_next_goes_on(fetcher, site):
    asked = [segment("ok-a"), segment("n404", row=1), segment("ok-b", row=2)]
    rows = fetcher(site.template, limit=2).run(asked, connections=2)
    assert [row.status for row in rows] == ["ok", "gone", "waiting"]
    with pytest.raises(RuntimeError, match=r"1 of 3 clips were not tried yet.*network\.limit"):
        download_ledger.check_tried(rows, publish_partial=False)
    download_ledger.check_tried(rows, publish_partial=True)
    rows = fetcher(site.template, limit=2).run(asked, connections=2)
    assert [row.status for row in rows] == ["ok", "gone", "ok"]
    assert "not tried" not in rows[2].reason
    download_ledger.check_tried(rows, publish_partial=False)


def test_all_threads_together_keep_to_the_rate(fetcher, site):
    asked = [segment(f"n404-{i}", row=i) for i in range(12)]
    started = time.monotonic()
    fetcher(site.template, clips_per_hour=36_000.0).run(asked, connections=6)
    assert time.monotonic() - started >= 11 * 0.1 * 0.5
    assert sum(site.requests.values()) == 12


def test_files_are_read_without_rate_limit(fetcher, recordings):
    asked = [segment("ok-a", row=0), segment("missing", row=1), segment("ok-b", row=2)]
    fetch = fetcher(str(recordings / "{recording_id}.wav"), clips_per_hour=1.0)
    rows = fetch.run(asked, connections=1)
    assert [row.status for row in rows] == ["ok", "gone", "ok"]


def test_the_index_of_a_recording_may_be_at_its_end(fetcher, site, signal):
    row, samples = fetch_one(fetcher(site.template), segment("ok-moovend"))
    assert (row.status, row.reason) == ("ok", "")
    assert abs(lag(samples, signal[10 * RATE : 20 * RATE])) <= 0.002 * RATE


COOKIES = """# Netscape HTTP Cookie File
127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tsecret
example.org\tFALSE\t/\tFALSE\t0\tother\tprivate
"""


def test_cookies_are_sent_only_to_their_host_and_the_file_stays_unchanged(fetcher, site, tmp_path):
    path = tmp_path / "cookies.txt"
    path.write_text(COOKIES)
    row, _ = fetch_one(fetcher(site.template, cookies=str(path)), segment("ok-a"))
    assert row.ok
    sent = [headers.get("Cookie", "") for headers in site.headers]
    assert len(sent) >= 2  # yt-dlp and FFmpeg
    assert set(sent) == {"session=secret"}
    assert path.read_text() == COOKIES


def test_missing_cookies_are_reported_before_any_request(fetcher, site):
    with pytest.raises(FileNotFoundError, match=r"no nowhere\.txt; correct network\.cookies"):
        fetcher(site.template, cookies="nowhere.txt")
    assert not site.requests


def test_everything_goes_through_the_proxy(fetcher, recordings):
    with serve(recordings) as proxy:  # the media server takes whole addresses, too
        template = "http://recordings.invalid/{recording_id}.wav"
        address = f"http://127.0.0.1:{proxy.server_port}"
        row, _ = fetch_one(fetcher(template, proxy=address), segment("ok-a"))
        assert (row.status, row.reason) == ("ok", "")
        assert {headers["Host"] for headers in proxy.headers} == {"recordings.invalid"}
        assert len(proxy.headers) >= 2


def test_a_server_that_ignores_ranges_gives_the_same_clip(fetcher, site, signal):
    _, samples = fetch_one(fetcher(site.template), segment("norange-a"))
    np.testing.assert_array_equal(samples, signal[10 * RATE : 20 * RATE])


@pytest.mark.parametrize("way", ["web", "file"])
def test_a_recording_that_ends_early_gives_a_shorter_clip(fetcher, site, recordings, signal, way):
    template = site.template if way == "web" else str(recordings / "{recording_id}.wav")
    row, samples = fetch_one(fetcher(template), segment("ok-14s"))
    np.testing.assert_array_equal(samples, signal[10 * RATE : 14 * RATE])
    assert row.duration_s == 4.0


@pytest.mark.parametrize("suffix", ["wav", "ogg", "m4a", "webm"])
def test_segments_at_or_beyond_the_end_are_short(fetcher, recordings, suffix):
    asked = [segment("ok-a", 29.95, 40.0), segment("ok-a", 40.0, 50.0, row=1)]
    for row in fetcher(str(recordings / f"{{recording_id}}.{suffix}")).run(asked, connections=1):
        assert row.status == "short"
        assert "the recording ends before it: 0.0" in row.reason


def test_ffmpeg_reads_only_what_the_segment_needs(fetcher, recordings, tmp_path, signal):
    soundfile.write(tmp_path / "ok-long.wav", np.concatenate([signal] * 20), RATE)
    with serve(tmp_path) as site:
        row, _ = fetch_one(fetcher(site.template), segment("ok-long", 30.0, 33.0))
        assert row.ok
        assert site.bytes_sent < 0.3 * (tmp_path / "ok-long.wav").stat().st_size


def test_a_second_run_requests_nothing_and_changes_nothing(fetcher, site, tmp_path):
    asked = [
        segment(name, row=i) for i, name in enumerate(["ok-a", "n404", "ok-b", "html-a", "n401"])
    ]
    rows = fetcher(site.template).run(asked, connections=3)
    assert [row.status for row in rows] == ["ok", "gone", "ok", "no_audio", "login"]
    before = {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    site.requests.clear()
    assert fetcher(site.template, tries=5, clips_per_hour=1.0).run(asked, connections=8) == rows
    assert not site.requests
    assert {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()} == before


def test_a_later_run_retries_transient_failures(fetcher, site):
    asked = [segment("s503x1-a"), segment("n429", row=1), segment("n404", row=2)]
    first = fetcher(site.template, tries=1).run(asked, connections=1)
    assert [row.status for row in first] == ["transient", "blocked", "gone"]
    again = fetcher(site.template, tries=1).run(asked, connections=1)
    assert [row.status for row in again] == ["ok", "blocked", "gone"]
    assert site.requests["n429.wav"] == 2
    assert site.requests["n404.wav"] == 1


def test_a_clip_that_was_lost_is_fetched_again(fetcher, site, tmp_path):
    asked = [segment("ok-a"), segment("ok-b", row=1)]
    fetch = fetcher(site.template)
    rows = fetch.run(asked, connections=1)
    (pack,) = (tmp_path / "store" / "packs").iterdir()
    pack.write_bytes(pack.read_bytes()[: fetch.store.last(clip_key(asked[1])).offset])
    site.requests.clear()
    assert fetcher(site.template).run(asked, connections=1) == rows
    assert set(site.requests) == {"ok-b.wav"}


def test_a_replaced_or_new_file_is_fetched_again(fetcher, tmp_path, signal):
    template = str(tmp_path / "{recording_id}.wav")
    asked = [segment("a", 1.0, 2.0), segment("b", 1.0, 2.0, row=1)]
    soundfile.write(tmp_path / "a.wav", signal[: 3 * RATE], RATE)
    first = fetcher(template).run(asked, connections=1)
    assert [row.status for row in first] == ["ok", "gone"]
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", signal[RATE : 4 * RATE], RATE)
    second = fetcher(template).run(asked, connections=1)
    assert [row.status for row in second] == ["ok", "ok"]
    assert first[0].sha256 != second[0].sha256 == second[1].sha256


def damaged(content, at, size, how):
    """A recording with `size` bytes from `at` on destroyed, or lost."""
    filler = {"zeros": bytes(size), "noise": np.random.default_rng(2).bytes(size), "lost": b""}
    return content[:at] + filler[how] + content[at + size :]


@pytest.mark.parametrize(
    ("suffix", "how"),
    [(s, how) for s in ("ogg", "webm") for how in ("zeros", "noise", "lost")]
    + [("m4a", "zeros"), ("m4a", "noise")],
)
def test_a_clip_of_a_damaged_recording_is_right_or_corrupt(
    fetcher, recordings, tmp_path, signal, suffix, how
):
    content = (recordings / f"ok-a.{suffix}").read_bytes()
    size = len(content) // 10  # 3 seconds from about 15 s on
    (tmp_path / f"a.{suffix}").write_bytes(damaged(content, len(content) // 2, size, how))
    starts = (0.0, 10.0, 13.0, 14.0, 16.0, 21.0, 26.0)
    asked = [segment("a", s, s + 3, row=i) for i, s in enumerate(starts)]
    fetch = fetcher(str(tmp_path / f"{{recording_id}}.{suffix}"))
    rows = fetch.run(asked, connections=2)
    assert [row.status for row in rows[3:5]] == ["corrupt", "corrupt"]
    assert rows[0].ok and rows[1].ok and rows[6].ok
    source = np.arange(len(signal)) / RATE
    for row, one in zip(rows, asked, strict=True):
        if row.ok:
            samples, rate = soundfile.read(clip_of(fetch, one))
            assert len(samples) == 3 * rate
            times = one.start_s + np.arange(len(samples)) / rate
            expected = np.stack([np.interp(times, source, c) for c in signal.T], axis=1)
            for part in (slice(0, rate), slice(-rate, None)):
                assert abs(lag(samples[part], expected[part])) <= 0.002 * rate


def test_the_same_segment_makes_the_same_bytes(fetcher, recordings):
    fetch = fetcher(str(recordings / "{recording_id}.wav"))
    hashes = set()
    for name in ("ok-a", "ok-b"):  # copies of each other
        hashes |= {fetch_one(fetch, segment(name))[0].sha256}
    assert len(hashes) == 1


def test_rows_keep_the_order_of_the_list_whatever_ends_first(fetcher, site):
    asked = [segment(n, row=i) for i, n in enumerate(["n503", "ok-a", "n404", "ok-b"])]
    rows = fetcher(site.template).run(asked, connections=4)
    assert [row.recording_id for row in rows] == ["n503", "ok-a", "n404", "ok-b"]


def test_a_full_disk_stops_the_run_and_blames_no_clip(fetcher, recordings, monkeypatch):
    fetch = fetcher(str(recordings / "{recording_id}.wav"))
    command = cutting.cut_command

    def to_full_disk(media, segment, target, timeout_s):
        arguments = command(media, segment, target, timeout_s)
        return ["/dev/full" if part == str(target) else part for part in arguments]

    monkeypatch.setattr(cutting, "cut_command", to_full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        fetch.run([segment("ok-a"), segment("ok-b", row=1)], connections=2)
    assert fetch.store.last(clip_key(segment("ok-a"))) is None


def test_names_with_characters_special_in_urls_are_found(fetcher, tmp_path, signal):
    folder = tmp_path / "a b%20#ü"
    folder.mkdir()
    soundfile.write(folder / "-_x.wav", signal[: 3 * RATE], RATE)
    row, _ = fetch_one(fetcher(str(folder / "{recording_id}.wav")), segment("-_x", 1.0, 2.0))
    assert row.ok


def test_a_relative_template_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = fetching_media.recording_url("data/{recording_id}.ogg", "a")
    assert cutting.local_path(url) == tmp_path / "data" / "a.ogg"
    assert fetching_media.recording_url("https://x.org/watch?v={recording_id}", "-_a") == (
        "https://x.org/watch?v=-_a"
    )
    assert cutting.local_path("https://x.org/a.ogg") is None


def test_only_network_input_has_a_timeout_and_headers(tmp_path):
    asked = segment("a")
    web = cutting.cut_command(cutting.Media("http://x/a", {"A": "b"}), asked, tmp_path, 2.5)
    assert web[web.index("-rw_timeout") + 1] == "2500000"
    assert web[web.index("-headers") + 1] == "A: b\r\n"
    local = cutting.cut_command(cutting.Media("file:///a", {"A": "b"}), asked, tmp_path, 2.5)
    assert "-rw_timeout" not in local
    assert "-headers" not in local


def test_audio_after_a_gap_is_never_taken_for_audio_before_it(fetcher, recordings, tmp_path):
    content = (recordings / "ok-a.ogg").read_bytes()
    size = len(content) // 10
    half_gone = damaged(content, len(content) // 2, size, "zeros")
    # In the first page with sound, so that FFmpeg's time starts after the gap.
    head_gone = damaged(content, 5000, size, "zeros")
    (tmp_path / "half.ogg").write_bytes(half_gone)
    (tmp_path / "head.ogg").write_bytes(head_gone)
    asked = [segment("half", 13.0, 23.0), segment("head", 10.0, 20.0, row=1)]
    half, head = fetcher(str(tmp_path / "{recording_id}.ogg")).run(asked, connections=1)
    assert (half.status, head.status) == ("corrupt", "corrupt")
    assert re.fullmatch(r"the recording has a gap at 1[45]\.\d{3} s", half.reason)
    assert head.reason == "the recording is damaged: CRC mismatch!"


@pytest.mark.parametrize(
    ("stamps", "expected_s"),
    [
        (["10", "10.128", "10.256"], None),
        (["10", "11.128", "11.256"], 0.128),  # a gap of 1 s
        (["10", "10.128", "9.5"], 0.256),  # time goes back
        (["11", "11.128"], 0.0),  # already before the first
        (["10.005", "10.2"], None),  # some milliseconds do not matter
        (["10", "NOPTS"], None),
        ([], None),
    ],
)
def test_a_gap_is_where_time_stamps_and_samples_disagree(stamps, expected_s):
    lines = [f"frame:{i}    pts:1 pts_time:{stamp}\n-=-" for i, stamp in enumerate(stamps)]
    assert cutting.gap_s("\n".join(lines), 8000, start_s=10.0) == expected_s


def test_a_segment_may_start_some_samples_before_a_frame_ends(fetcher, recordings, signal):
    # 30 s at 44.1 kHz are 1016 samples into a frame of AAC (1024): 8 are left, FLAC wants 16.
    loop = ["-stream_loop", "1", "-i", recordings / "ok-a.wav", "-c:a", "aac", "-b:a", "192k"]
    ffmpeg(*loop, recordings / "ok-long.m4a")
    row, samples = fetch_one(
        fetcher(str(recordings / "{recording_id}.m4a")), segment("ok-long", 30.0, 33.0)
    )
    assert (row.status, row.reason) == ("ok", "")
    assert abs(lag(samples, signal[: 3 * RATE])) <= 0.002 * RATE


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_opened(fetcher, tmp_path, make):
    make(tmp_path / "a.wav")
    row, _ = fetch_one(fetcher(str(tmp_path / "{recording_id}.wav")), segment("a"))
    assert row.status == "no_audio"
    assert row.reason == "a.wav is a folder, pipe or device, not a file"


def test_a_stalled_cut_ends_on_request(fetcher, site):
    fetch = fetcher(site.template, timeout_s=30.0)
    media, stop = (
        cutting.Media(site.template.replace("{recording_id}", "drip-a"), {}),
        threading.Event(),
    )
    threading.Timer(0.5, stop.set).start()
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="interrupted"):
        cutting.cut(media, segment("drip-a"), fetch.partial.with_suffix(".flac"), 30.0, stop)
    assert 0.5 <= time.monotonic() - started < 1.5


def test_a_cut_that_takes_too_long_is_given_up(site, tmp_path):
    media = cutting.Media(site.template.replace("{recording_id}", "drip-a"), {})
    with pytest.raises(UnavailableError, match="no complete clip within 1 s"):
        cutting.cut(media, segment("drip-a"), tmp_path / "a.flac", 0.1, threading.Event())


def test_a_silent_site_does_not_keep_a_run_from_ending(fetcher, site, monkeypatch):
    monkeypatch.setattr(fetching, "STOP_S", 0.3)
    fetch = fetcher(site.template, timeout_s=30.0)

    def interrupt():
        while not site.requests:
            time.sleep(0.01)
        os.kill(os.getpid(), SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch.run([segment("stall-a")], connections=2)
    assert time.monotonic() - started < 10
    site.ended.set()
    for thread in threading.enumerate():
        if thread.name == "download":
            thread.join(5)
    assert fetch.store.last(clip_key(segment("stall-a"))) is None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no ffmpeg", r"FFmpeg does not run: .*nowhere"),
        ("old ffmpeg", r"FFmpeg 5\.1\.9, which lacks -request_size"),
        ("old yt-dlp", r"yt-dlp 2026\.01\.31 is \d+ days old, more than .*max_tool_age_days = 90"),
        ("no js", r"needs a JavaScript runtime, .*node 20\.1\.0 is too old"),
        (
            "full disk",
            r"50 MB are free in .*, where clips are kept; 100 MB are .*queue status` says",
        ),
    ],
)
def test_faults_of_this_machine_are_reported_before_the_first_request(
    fetcher, tmp_path, monkeypatch, fault, message
):
    break_tools(monkeypatch, tmp_path, fault)
    fetch = fetcher("https://www.youtube.com/watch?v={recording_id}")
    monkeypatch.setattr(fetching_media, "resolve", lambda *_: pytest.fail("a clip was asked for"))
    with pytest.raises((RuntimeError, OSError), match=message):
        fetch.run([segment("ok-a")], connections=1)
    assert fetch.store.last(clip_key(segment("ok-a"))) is None


def break_tools(monkeypatch, folder, fault):
    """Let this machine lack one thing."""
    program = folder / "ffmpeg"
    program.write_text("#!/bin/sh\necho ffmpeg version 5.1.9\n")
    program.chmod(0o755)
    if fault == "no ffmpeg":
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    elif fault == "old ffmpeg":
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    elif fault == "old yt-dlp":
        monkeypatch.setattr(requirements.yt_dlp.version, "__version__", "2026.01.31")
    elif fault == "no js":
        monkeypatch.setattr(requirements, "check_age", lambda _: None)
        monkeypatch.setattr(requirements, "js_runtimes", lambda: iter([("node", "20.1.0", False)]))
    else:
        monkeypatch.setattr(requirements, "check_age", lambda _: None)
        monkeypatch.setattr(requirements.files, "free_bytes", lambda _: 50_000_000)


def test_only_youtube_needs_recent_tools(fetcher, site, monkeypatch):
    monkeypatch.setattr(requirements.yt_dlp.version, "__version__", "2020.01.31")
    monkeypatch.setattr(requirements, "js_runtimes", lambda: iter([]))
    row, _ = fetch_one(fetcher(site.template), segment("ok-a"))
    assert row.ok


def test_a_finished_run_needs_no_tools(fetcher, site, monkeypatch):
    fetch_one(fetcher(site.template), segment("ok-a"))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    (row,) = fetcher(site.template).run([segment("ok-a")], connections=1)
    assert row.ok


def test_leftovers_of_a_killed_process_are_removed(fetcher, recordings):
    fetch = fetcher(str(recordings / "{recording_id}.wav"))
    fetch.partial.mkdir()
    (fetch.partial / "half.flac").write_bytes(b"x")
    fetch_one(fetch, segment("ok-a"))
    assert os.listdir(fetch.partial) == []
