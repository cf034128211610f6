"""What each source may hold besides good clips; work that is not repeated."""

import fcntl
import gzip
import io
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import h5py
import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import synthetic_sources as synthetic
from dvc.utils.hydra import apply_overrides
from stage_runs import ROOT, change_params, make, run_stages, use
from synthetic_sources import audio

import pipeline.corpus.sources.parquet
from pipeline.corpus.clips import ledger, tar_shards
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.params import TarParams
from pipeline.corpus.sources import packing, probing
from pipeline.corpus.sources.comparison import compare
from pipeline.corpus.sources.files import list_files
from pipeline.corpus.sources.selection import select
from pipeline.corpus.sources.tar import Tar, join_labels
from pipeline.corpus.sources.whole_recordings import check_id


@pytest.fixture(autouse=True)
def _parameters(repository):
    """The committed parameters, but with any share of failures allowed."""
    change_params({"download": {"clips_per_shard": 2, "max_failed": 1.0},
                   "compute": {"workers": 1, "connections": 1}}, ROOT / "params.yaml")  # fmt: skip


def download():
    """The rows of a download by clip id."""
    run_stages("download")
    return {row.clip_id: row for row in ledger.read(Path("data/clips/ledger.csv"))}


def failure_of(caplog):
    """The message with which the download stops."""
    with pytest.raises(SystemExit) as stop:
        run_stages("download")
    assert stop.value.code == 1
    assert not Path("data/clips").exists()
    return caplog.records[-1].getMessage()


def stored_clips():
    """Member name -> content of all shards of data/clips."""
    clips = {}
    for path in sorted(Path("data/clips").glob("*.tar")):
        with tarfile.open(path) as tar:
            clips |= {member.name: tar.extractfile(member).read() for member in tar}
    return clips


def test_clips_of_a_container_are_stored_unchanged_and_named_by_their_format():
    make("tar")
    download()
    members = dict(itertools.chain.from_iterable(synthetic.TAR_MEMBERS.values()))
    assert stored_clips() == {
        "-ab_1_0.flac": members["-ab_1.flac"], "sub/two_0.mp3": members["sub/two.mp3"],
        "three_0.m4a": members["three.m4a"], "four_0.ogg": members["four.ogg"],
    }  # fmt: skip


def test_waveforms_are_stored_bit_for_bit():
    make("hdf5")
    download()
    wave, rate = soundfile.read(io.BytesIO(stored_clips()["-1nilez17Dg_0.flac"]), dtype="int16")
    assert rate == 32000
    np.testing.assert_array_equal(wave, synthetic.tone(300, rate=32000))


# ---- work is not repeated ----------------------------------------------------------------------


def count_reads(monkeypatch):
    """Ids of the segments whose content is read from now on."""
    asked = []
    original = Tar.contents

    def counted(self, segments, max_bytes):
        asked.extend(segment.recording_id for segment in segments)
        return original(self, segments, max_bytes)

    monkeypatch.setattr(Tar, "contents", counted)
    return asked


def test_a_repeated_download_reads_no_clip_unless_a_file_has_changed(monkeypatch):
    make("tar")
    run_stages("download")
    first = stored_clips()
    asked = count_reads(monkeypatch)
    run_stages("download")
    assert asked == []
    os.utime("data/tar/tr-1.tar", ns=(0, 0))
    run_stages("download")
    assert asked == ["-ab_1", "sub/two", "three", "four"]
    assert stored_clips() == first


def test_other_code_copies_all_clips_again(monkeypatch):
    make("tar")
    run_stages("download")
    section = TarParams(path="data/tar", label_key="labels", id_key="", segments=[], clips="")
    code = packing.packing_code(Tar(section))
    asked = count_reads(monkeypatch)
    for identity, reads in ((code, []), ("other", ["-ab_1", "sub/two", "three", "four"])):
        monkeypatch.setattr(packing, "packing_code", lambda source, identity=identity: identity)
        run_stages("download")
        assert asked == reads


def test_a_changed_parameter_of_the_source_makes_new_shards():
    write_hdf5(audio_name=NAMES, waveform=WAVES)
    for rate in (16000, 22050):
        use("hdf5", sample_rate=rate)
        download()
        assert soundfile.info(io.BytesIO(stored_clips()["a_0.flac"])).samplerate == rate


def test_an_interrupted_download_goes_on_after_the_last_complete_shard(monkeypatch):
    make("tar")
    original = Tar.contents

    def stopped(self, segments, max_bytes):
        if segments[0].recording_id == "three":
            raise KeyboardInterrupt
        return original(self, segments, max_bytes)

    with monkeypatch.context() as broken, pytest.raises(SystemExit):
        broken.setattr(Tar, "contents", stopped)
        run_stages("download")
    assert not Path("data/clips").exists()
    asked = count_reads(monkeypatch)
    assert ledger.counts(download().values()) == {"ok": 4}
    assert asked == ["three", "four"]


def test_two_processes_do_not_copy_the_same_clips_at_once(caplog):
    make("tar")
    run_stages("download")
    (held,) = Path(".work/download").glob("*/clips.lock")
    shutil.rmtree("data/clips")
    with held.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "Another process is running the same configuration" in failure_of(caplog)


def test_without_hard_links_shards_are_copied(monkeypatch):
    make("tar")
    run_stages("download")
    first = stored_clips()

    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    asked = count_reads(monkeypatch)
    run_stages("download")
    assert stored_clips() == first
    assert asked == []


def test_only_shards_of_the_last_download_are_kept():
    make("tar")
    for _ in range(2):
        run_stages("download")
        os.utime("data/tar/tr-1.tar", ns=(0, 0))
    stored = [p.stat().st_ino for p in Path(".work/download").rglob("*.tar")]
    assert sorted(stored) == sorted(p.stat().st_ino for p in Path("data/clips").glob("*.tar"))


def test_files_that_change_while_they_are_read_are_an_error(monkeypatch, caplog):
    make("tar")
    original = Tar.contents

    def meddled(self, segments, max_bytes):
        os.utime("data/tar/tr-1.tar")
        return original(self, segments, max_bytes)

    monkeypatch.setattr(Tar, "contents", meddled)
    assert "changed while they were read" in failure_of(caplog)


# ---- a list of clips ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["url", "tar", "folder"])
def test_a_list_restricts_a_source_to_clips_or_recordings(source):
    expected = list(make(source))
    lists = {"url": "b_4000\n-a_0", "tar": "four\nsub/two_0\n", "folder": "long\r\n\r\nz\r\n"}
    Path("list.txt").write_text(lists[source])
    use(source, clips="list.txt")
    rows = download()
    selected = {"url": [0, 2], "tar": [1, 3], "folder": [2, 3, 4, 5]}[source]
    assert list(rows) == [expected[i] for i in selected]
    assert [row.row for row in rows.values()] == list(range(len(selected)))
    assert ledger.counts(rows.values()) == {"ok": len(selected)}


def test_the_ledger_of_a_run_reproduces_its_set_from_a_source_that_has_more():
    make("tar")
    Path("data/tar/tr-1.tar").rename("tr-1.tar")
    synthetic.tar("data/tar", {"bad.tar": [("bad.wav", b"")]})
    run_stages("download", "resample", "logmel")
    first = stored_clips()
    Path("data/ledger.csv").rename("published.csv")
    Path("tr-1.tar").rename("data/tar/tr-1.tar")
    use("tar", clips="published.csv")
    assert list(download()) == ["-ab_1_0", "sub/two_0"]
    assert stored_clips() == first


def test_each_list_gives_its_own_download():
    make("tar")
    use("tar", clips="list.txt")
    for name in ("four", "three"):
        Path("list.txt").write_text(name)
        assert list(download()) == [f"{name}_0"]


@pytest.mark.parametrize("source", ["url", "tar"])
def test_clips_that_the_source_lacks_are_named(source, caplog):
    first = next(iter(make(source)))
    use(source, clips="list.txt")
    Path("list.txt").write_text(f"{first}\nnobody_0\nnothing\n")
    assert "list.txt lists 2 clips that the source does not have" in (error := failure_of(caplog))
    assert "nobody_0" in error and "nothing" in error


@pytest.mark.parametrize(("content", "message"), [(None, "no list of clips list.txt"),
                                                  ("\n \n", "lists no clips")])  # fmt: skip
def test_a_list_that_is_missing_or_empty_is_an_error(content, message, caplog):
    make("tar")
    use("tar", clips="list.txt")
    if content is not None:
        Path("list.txt").write_text(content)
    assert message in failure_of(caplog)


# ---- folder ------------------------------------------------------------------------------------


def test_long_recordings_are_cut_to_the_sample_and_keep_their_channels():
    make("folder")
    rows = download()
    pieces = [soundfile.read(io.BytesIO(stored_clips()[f"long_{ms}.flac"]), dtype="int16")[0]
              for ms in (0, 2000, 4000)]  # fmt: skip
    recording = synthetic.tone(500, 5.0, channels=2)
    np.testing.assert_array_equal(np.concatenate(pieces), recording)
    assert [len(piece) for piece in pieces] == [2 * synthetic.RATE] * 2 + [synthetic.RATE]
    assert (rows["long_2000"].start_s, rows["long_2000"].end_s) == (2.0, 4.0)


def test_formats_that_only_ffmpeg_reads_are_cut_too():
    synthetic.write("data/folder", {"a.m4a": audio(440, "m4a", seconds=5.0)})
    use("folder", max_clip_s=2.0)
    rows = download()
    assert list(rows) == ["a_0", "a_2000", "a_4000"]
    assert [row.duration_s for row in rows.values()] == pytest.approx([2, 2, 1], abs=0.06)


def test_without_a_limit_recordings_stay_whole():
    make("folder")
    use("folder", max_clip_s=0.0)
    assert list(download()) == ["b/one_0", "b/two words_0", "long_0", "z_0"]
    assert stored_clips()["long_0.wav"] == Path("data/folder/long.wav").read_bytes()


@pytest.mark.parametrize(
    ("length_s", "expected"),
    [(3.0, [(0, 3.0)]), (10.0, [(0, 10.0)]), (10.05, [(0, 10.05)]), (0.0, [(0, 0.0)]),
     (10.2, [(0, 10), (10, 10.2)]), (25.0, [(0, 10), (10, 20), (20, 25.0)])],
)  # fmt: skip
def test_a_remainder_too_short_for_a_clip_joins_the_last_clip(length_s, expected):
    assert probing.spans(length_s, 10.0) == expected


def test_faults_of_files_are_in_the_ledger():
    truncated = audio(300, "flac", seconds=5.0)
    synthetic.write("data/folder", {
        "empty.wav": b"", "text.mp3": b"no audio at all" * 99, "good.wav": audio(300, "wav"),
        "cut.flac": truncated[: len(truncated) // 2], "short.wav": audio(300, "wav", 0.01),
    })  # fmt: skip
    Path("data/folder/dangling.wav").symlink_to("nowhere.wav")
    use("folder", max_clip_s=2.0)
    rows = {row.clip_id: (row.status, row.reason) for row in download().values()}
    assert rows.pop("good_0") == rows.pop("cut_0") == ("ok", "")
    assert {clip_id: status for clip_id, (status, _) in rows.items()} == {
        "cut_2000": "corrupt", "cut_4000": "corrupt", "dangling_0": "gone", "empty_0": "corrupt",
        "short_0": "short", "text_0": "corrupt",
    }  # fmt: skip
    assert rows["empty_0"][1] == "the file is empty"
    assert "truncated" in rows["cut_4000"][1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_clip_with_samples_that_are_not_finite_is_corrupt(value):
    wave = synthetic.tone(300, 5.0) / np.float32(32768)
    wave[70_000] = value  # at 3.2 s
    Path("data/folder").mkdir(parents=True)
    soundfile.write("data/folder/a.wav", wave, synthetic.RATE, subtype="FLOAT")
    use("folder", max_clip_s=2.0)
    rows = download()
    assert [row.status for row in rows.values()] == ["ok", "corrupt", "ok"]
    assert rows["a_2000"].reason == "it has samples that are not finite"


def test_a_truncated_long_wav_loses_its_missing_clips():
    synthetic.write("data/folder", {"a.wav": audio(300, "wav", seconds=5.0)})
    path = Path("data/folder/a.wav")
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    use("folder", max_clip_s=2.0)
    rows = download()
    assert {key: row.status for key, row in rows.items()} == {
        "a_0": "ok", "a_2000": "corrupt", "a_4000": "corrupt"}  # fmt: skip
    assert "truncated" in rows["a_2000"].reason


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_the_duration_of_an_mp3_is_that_of_what_was_encoded(rate, mode):
    file = io.BytesIO()
    wave = 0.1 * np.random.default_rng(0).standard_normal(round(4.321 * rate))
    soundfile.write(file, wave, rate, format="MP3", bitrate_mode=mode)
    assert probing.duration_s(file.getvalue()) == pytest.approx(4.321, abs=1e-3)


def test_a_long_mp3_without_a_header_is_cut_like_any_other(tmp_path):
    """Its halves differ in bit rate, so a time cannot be computed from an offset in bytes."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 8 * 48000)
    wave[: 4 * 48000] = 0
    wav = tmp_path / "a.wav"
    soundfile.write(wav, wave, 48000)
    Path("data/folder").mkdir(parents=True)
    options = ["-v", "error", "-q:a", "4", "-write_xing", "0", "data/folder/a.mp3"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", wav, *options], check=True)
    use("folder", max_clip_s=2.0)
    assert [row.status for row in download().values()] == ["ok"] * 4
    levels = [np.abs(soundfile.read(io.BytesIO(stored_clips()[f"a_{ms}.flac"]))[0]).mean()
              for ms in (0, 2000, 4000, 6000)]  # fmt: skip
    assert levels == pytest.approx([0, 0, 0.21, 0.21], abs=0.02)


def test_hidden_folders_are_not_read():
    names = ("a.wav", ".ipynb_checkpoints/a-checkpoint.wav", "b/.Trash-1000/files/deleted.wav")
    synthetic.write("data/folder", {name: audio() for name in names})
    use("folder")
    assert list(download()) == ["a_0"]


def test_a_tar_whose_labels_have_another_key_says_so(caplog):
    tags = json.dumps({"text": "rain", "tag": ["Rain"]}).encode()
    synthetic.tar("data/tar", {"a.tar": [("x.flac", audio()), ("x.json", tags)]})
    use("tar")
    caplog.set_level("WARNING")
    download()
    assert "no .json has 'labels' (sources.tar.label_key). Keys of one: text, tag" in caplog.text
    caplog.clear()
    use("tar", label_key="tag")
    assert [row.labels for row in download().values()] == ["Rain"]
    assert "No clip has labels" not in caplog.text


def test_pipes_are_not_read():
    synthetic.write("data/folder", {"a.wav": audio()})
    os.mkfifo("data/folder/pipe.wav")
    use("folder")
    assert list(download()) == ["a_0"]


def test_names_with_unusual_spaces_or_a_colon_are_accepted():
    names = ["a:b", "back\\slash", " first", "ideographic\u3000space", "last ", "zwj\u200djoined"]
    synthetic.write("data/folder", {f"{name}.wav": audio() for name in names})
    use("folder")
    rows = download()
    assert {row.recording_id: row.status for row in rows.values()} == dict.fromkeys(names, "ok")


def test_files_of_one_stem_keep_their_suffixes_in_their_ids(caplog):
    names = ["x/a.wav", "x/a.ogg", "x/a.wav.ogg", "x/b.wav", "a.wav"]
    synthetic.write(
        "data/folder", {name: audio(300 + i, name[-3:]) for i, name in enumerate(names)}
    )
    use("folder")
    with caplog.at_level("INFO"):
        rows = download()
    ids = ["a", "x/a.ogg", "x/a.wav", "x/a.wav.ogg", "x/b"]
    assert {row.recording_id: row.status for row in rows.values()} == dict.fromkeys(ids, "ok")
    clips = stored_clips()
    for name, clip in [("x/a.wav", "x/a.wav_0.wav"), ("x/a.wav.ogg", "x/a.wav.ogg_0.ogg")]:
        assert clips[clip] == Path("data/folder", name).read_bytes()
    assert "3 files are like others but for their suffixes, which their ids keep" in caplog.text


@pytest.mark.parametrize(("files", "message"), [
    (None, "There is no data/folder; put the data there, or correct sources.folder.path"),
    ({"a.txt": b""}, "data/folder holds no file that ends in .aac, .aif"),
])  # fmt: skip
def test_a_folder_without_audio_is_an_error(files, message, caplog):
    synthetic.write("data/folder", files or {})
    use("folder")
    assert message in failure_of(caplog)


def test_links_to_folders_are_followed_once(tmp_path):
    synthetic.write("elsewhere", {"a.wav": audio()})
    synthetic.write("data/folder", {"b.wav": audio()})
    Path("data/folder/more").symlink_to(tmp_path / "elsewhere")
    use("folder")
    assert list(download()) == ["b_0", "more/a_0"]
    Path("data/folder/loop").symlink_to(tmp_path / "data/folder")
    with pytest.raises(ValueError, match="is listed already"):
        list_files(Path("data/folder"), {".wav"}, "x")


# ---- FSD50K ------------------------------------------------------------------------------------


def test_one_split_of_fsd50k_can_be_taken():
    make("fsd50k")
    use("fsd50k", splits=["val"])
    assert list(download()) == ["16399_0"]


def test_a_listed_file_that_fsd50k_lacks_is_gone():
    make("fsd50k")
    Path("data/fsd50k/FSD50K.dev_audio/16399.wav").unlink()
    rows = download()
    lost = rows["16399_0"]
    assert (lost.status, lost.reason) == ("gone", "there is no file 16399.wav")
    assert ledger.counts(rows.values()) == {"ok": 2, "gone": 1}


@pytest.mark.parametrize(("before", "after", "message"), [
    ("fname,labels,mids,split\n", "", "begins with '64760,.*expected 'fname,labels,mids,split'"),
    (",val", "", r"line 3 is '16399,Purr,/m/02yds9'; expected a row such as"),
    (",val", ",test", "line 3 is"),
    ("16399", "../x", "line 3 is"),
    ("16399", "64760", r"dev\.csv, line 3: id '64760' is in .*dev\.csv, line 2 already"),
])  # fmt: skip
def test_a_table_in_another_format_than_fsd50ks_is_an_error(before, after, message, caplog):
    synthetic.fsd50k("data/fsd50k", synthetic.FSD50K.replace(before, after))
    use("fsd50k")
    error = failure_of(caplog)
    assert re.search(message, error), error


@pytest.mark.parametrize("name", ["FSD50K.dev_audio", "FSD50K.ground_truth"])
def test_fsd50k_that_is_not_unpacked_is_an_error(name, caplog):
    make("fsd50k")
    Path("data/fsd50k", name).rename("elsewhere")
    assert f"There is no data/fsd50k/{name}" in failure_of(caplog)


# ---- tar ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../a.flac", "/tmp/a.flac", "x/../../a.flac", "..\\a.flac"])
def test_members_that_lead_out_of_their_folder_are_refused(name, caplog):
    synthetic.tar("data/tar", {"bad.tar": [("good.flac", audio()), (name, audio())]})
    use("tar")
    error = failure_of(caplog)
    assert (
        "data/tar/bad.tar" in error and "leads out of its folder" in error and repr(name) in error
    )


def test_links_in_a_tar_are_refused(caplog):
    synthetic.tar("data/tar", {"bad.tar": [("good.flac", audio())]})
    with tarfile.open("data/tar/bad.tar", "a") as tar:
        link = tarfile.TarInfo("link.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    use("tar")
    assert "'link.flac' is a link or device" in failure_of(caplog)


def test_faults_of_samples_in_a_tar_are_in_the_ledger():
    synthetic.tar("data/tar", {"a.tar": [
        ("good.flac", audio()), ("text.flac", b"no audio" * 99), ("empty.wav", b""),
        ("alone.json", b"{}"), ("broken.flac", audio()), ("broken.json", b"{"),
        ("number.flac", audio()), ("number.cls", b"dog"), ("list.flac", audio()),
        ("list.json", b"[1]"), ("null.flac", audio()), ("null.json", b'{"labels": null}'),
        ("deep.flac", audio()), ("deep.json", b"[" * 99_999), ("nul.flac", audio()),
        ("nul.json", rb'{"labels": "a\u0000b"}'), ("half.flac", audio()),
        ("half.json", rb'{"labels": ["\ud83d"]}'), ("line.flac", audio()),
        ("line.json", rb'{"labels": "a\rb"}'),
    ]})  # fmt: skip
    use("tar")
    rows = download()
    assert {row.recording_id: row.status for row in rows.values()} == {
        "good": "ok", "text": "corrupt", "empty": "corrupt", "alone": "no_audio",
        "broken": "corrupt", "number": "corrupt", "list": "corrupt", "null": "ok",
        "deep": "corrupt", "nul": "corrupt", "half": "corrupt", "line": "corrupt",
    }  # fmt: skip
    assert "its labels cannot be read: invalid literal" in rows["number_0"].reason
    assert rows["deep_0"].reason == "its labels cannot be read: the JSON is nested too deeply"
    assert r"labels 'a\x00b' of 'nul' hold '\x00', which" in rows["nul_0"].reason
    assert r"labels '\ud83d' of 'half' hold '\ud83d', which" in rows["half_0"].reason
    assert rows["alone_0"].reason == "the tar holds no audio file of this name"


@pytest.mark.parametrize("tars", [
    {"a.tar": [("x.flac", audio()), ("x.wav", audio())]},
    {"a.tar": [("x.flac", audio())], "b.tar": [("x.flac", audio(500))]},
])  # fmt: skip
def test_a_repeated_recording_is_refused_by_name(tars, caplog):
    synthetic.tar("data/tar", tars)
    use("tar")
    error = failure_of(caplog)
    assert "'x.wav' and 'x.flac' have the same id" in error or (
        "data/tar/b.tar: id 'x' is in data/tar/a.tar already" in error
    )


@pytest.mark.parametrize("how", ["truncated", "cut between members", "garbage", "gzip", "no tar"])
def test_a_damaged_tar_is_an_error_that_names_it(how, caplog):
    synthetic.tar("data/tar", {"a.tar": [("x.flac", audio()), ("y.flac", audio())]})
    path = Path("data/tar/a.tar")
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1]
    path.write_bytes({
        "truncated": content[: second.offset_data + 700],
        "cut between members": content[: second.offset],
        "garbage": content[: second.offset] + b"\x07" * 512 + content[second.offset + 512 :],
        "gzip": gzip.compress(content),
        "no tar": b"",
    }[how])  # fmt: skip
    use("tar")
    error = failure_of(caplog)
    assert "data/tar/a.tar" in error and "damaged" in error


GNU_TAR = (
    "GNU tar"
    in subprocess.run(["tar", "--version"], capture_output=True, text=True, check=False).stdout
)
gnu_tar = pytest.mark.skipif(not GNU_TAR, reason="only GNU tar packs files sparsely")


def write_with_holes(path, content):
    with open(path, "wb") as file:
        for start in range(0, len(content), 4096):
            if any(block := content[start : start + 4096]):
                file.seek(start)
                file.write(block)
        file.truncate(len(content))


def pack_sparse(options, *names):
    Path("data/tar").mkdir(parents=True)
    command = ["tar", "-cSf", "data/tar/a.tar", *options.split(), *names]
    subprocess.run(command, check=True)
    use("tar")


@gnu_tar
@pytest.mark.parametrize("options", [
    "--format=gnu", "--format=posix --sparse-version=0.0", "--format=posix --sparse-version=0.1",
    "--format=posix --sparse-version=1.0",
])  # fmt: skip
def test_a_sparse_member_is_read_as_it_was_packed(options):
    wave = synthetic.tone(300, 6.0, 16000)
    for second in (1, 3, 5):
        wave[second * 16000 : (second + 1) * 16000] = 0
    file = io.BytesIO()
    soundfile.write(file, wave, 16000, format="WAV")
    write_with_holes("a.wav", file.getvalue())
    synthetic.write(".", {"b.flac": audio()})
    pack_sparse(f"--hole-detection=raw {options}", "a.wav", "b.flac")
    assert Path("data/tar/a.tar").stat().st_size < Path("a.wav").stat().st_size
    assert [row.status for row in download().values()] == ["ok", "ok"]
    contents = {"a_0.wav": Path("a.wav").read_bytes(), "b_0.flac": audio()}
    assert stored_clips() == contents


@gnu_tar
@pytest.mark.parametrize("options", ["--format=gnu", "--format=posix"])
def test_a_member_that_claims_to_be_huge_costs_its_clip_alone_and_is_not_read(options):
    synthetic.write(".", {"good.flac": audio(), "x.flac": audio(), "big.wav": b"", "x.json": b""})
    for name in ("big.wav", "x.json"):
        os.truncate(name, 1 << 40)
    pack_sparse(options, "big.wav", "good.flac", "x.flac", "x.json")
    assert Path("data/tar/a.tar").stat().st_size < 100_000
    rows = download()
    assert {key: row.status for key, row in rows.items()} == {
        "big_0": "too_large", "good_0": "ok", "x_0": "too_large"}  # fmt: skip
    assert rows["big_0"].reason == (
        "'big' of data/tar/a.tar has 1,099,511,627,776 bytes, more than 1000 MB "
        "(download.max_clip_mb)"
    )
    assert "'x.json' of data/tar/a.tar has 1,099,511,627,776 bytes" in rows["x_0"].reason


@gnu_tar
def test_a_truncated_sparse_member_is_a_fault_of_its_clip():
    rng = np.random.default_rng(0)
    write_with_holes("a.wav", rng.bytes(8192) + bytes(1 << 20) + rng.bytes(8192))
    pack_sparse("--hole-detection=raw --format=gnu", "a.wav")
    source = Tar(TarParams(path="data/tar", label_key="", id_key="", segments=[], clips=""))
    segments = source.segments()
    os.truncate("data/tar/a.tar", 12_000)
    (fault,) = source.contents(segments, 1e9)
    assert (fault.kind, fault.reason) == (
        "corrupt", "its sparse member is damaged: unexpected end of data")  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "tar", "parquet", "hdf5"])
def test_clips_larger_than_the_limit_are_named_in_the_ledger(source):
    make(source)
    before = download()
    largest = max(row.bytes for row in before.values() if row.ok)
    change_params({"download": {"max_clip_mb": (largest - 1) / 1e6}})
    if source == "folder":
        use("folder", max_clip_s=0.0)
    rows = download()
    lost = [row for row in rows.values() if row.status == "too_large"]
    assert lost and any(row.ok for row in rows.values())
    assert all("(download.max_clip_mb)" in row.reason for row in lost)


def test_a_huge_file_is_not_read():
    synthetic.write("data/folder", {"a.wav": audio(), "big.wav": b""})
    os.truncate("data/folder/big.wav", 1 << 40)
    use("folder")
    rows = download()
    assert {key: row.status for key, row in rows.items()} == {"a_0": "ok", "big_0": "too_large"}


def test_a_row_of_samples_that_were_never_written_is_not_read():
    make("hdf5")
    with h5py.File("data/hdf5/huge.h5", "w") as file:
        file["audio_name"] = np.array([b"huge.wav"])
        file.create_dataset("waveform", (1, 1 << 40), np.int16, chunks=(1, 1 << 20))
        file.attrs["sample_rate"] = 32000
    rows = download()
    assert rows["huge_0"].status == "too_large"
    assert "row 0 of data/hdf5/huge.h5 has 2,199,023,255,552 bytes" in rows["huge_0"].reason
    assert ledger.counts(rows.values())["ok"] == 3


# ---- mirrors of AudioSet, against Google's list ------------------------------------------------


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def use_preset(name, source, path):
    """Apply an option file, with a copy of Google's list on this disk."""
    synthetic.audioset_list(Path("list.csv"))
    options = (ROOT / "presets" / name).read_text().replace("-S ", "").split()
    use(source, path=path)
    apply_overrides("params.yaml", [re.sub(r"\[https:.*\]", "[list.csv]", x) for x in options])


MIRRORS = [
    ("audioset-parquet", "parquet", synthetic.parquet_mirror, "data/unbal_train", "/m/0,/m/x"),
    ("audioset-16khz", "tar", synthetic.tar_mirror, "2m/train", "Speech,Name; 0"),
]


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(("preset", "source", "layout", "path", "labels"), MIRRORS)
def test_a_mirror_is_compared_with_googles_list_without_a_request(
    preset, source, layout, path, labels, caplog
):
    if source == "parquet":
        pytest.importorskip("pyarrow")
    layout("mirror")
    use_preset(preset, source, f"mirror/{path}")
    caplog.set_level("INFO")
    rows = download()
    assert {key: row.status for key, row in rows.items()} == {
        "--PJHxphWEs_30000": "ok", "Y_abcdefghi_31000": "ok", "0aBcDeFgHi__32000": "ok",
        "goneVideo-1_33000": "gone", "goneVideo-2_34000": "gone",
    }  # fmt: skip
    first = rows["--PJHxphWEs_30000"]
    assert (first.start_s, first.end_s, first.labels) == (30.0, 31.0, labels)
    lost = rows["goneVideo-1_33000"]
    assert lost.reason == f"it is listed in sources.{source}.segments, but not in the files"
    assert lost.labels == "/m/3"
    assert "3 of 5 listed clips are here, 2 are missing" in caplog.text


@pytest.mark.usefixtures("_no_network")
def test_recordings_that_the_list_lacks_are_left_out(caplog):
    pytest.importorskip("pyarrow")
    synthetic.parquet_mirror("mirror")  # with a clip of another subset
    use_preset("audioset-parquet", "parquet", "mirror")
    caplog.set_level("INFO")
    rows = download()
    assert "evalVideo-1_30000" not in rows and ledger.counts(rows.values())["ok"] == 3
    assert "left out, as they are not listed: 1" in caplog.text


@pytest.mark.usefixtures("_no_network")
def test_a_list_of_other_recordings_is_an_error(caplog):
    make("tar")
    synthetic.audioset_list(Path("list.csv"))
    use("tar", segments=["list.csv"])
    assert "None of the 4 recordings, such as '-ab_1', is in the lists of" in failure_of(caplog)


@pytest.mark.parametrize(("name", "expected"), [
    ("abcdefghijk", "abcdefghijk"), ("Yabcdefghijk", "abcdefghijk"), ("Y_-cdefghij", "Y_-cdefghij"),
    ("train/abcdefghijk", "abcdefghijk"), ("abcdefghijk_30.000_40.000", "abcdefghijk"),
    ("abcdefghijk_30", "abcdefghijk"), ("abcdefghijkl", None), ("other", None), ("a", "a"),
])  # fmt: skip
def test_copies_name_recordings_in_several_ways(name, expected):
    listed = [Segment(0, x, 3.0, 4.0, "") for x in ("abcdefghijk", "Y_-cdefghij", "a")]
    found = [Segment(0, name, 0.0, 0.0, ""), Segment(1, "a", 0.0, 0.0, "")][: 2 - (name == "a")]
    _, here = compare(found, listed, "x")
    assert here.get(expected) == (name if expected else None)


def test_two_recordings_of_one_listed_clip_are_an_error():
    found = [
        Segment(i, name, 0.0, 0.0, "") for i, name in enumerate(["Yabcdefghijk", "abcdefghijk"])
    ]
    with pytest.raises(ValueError, match="'Yabcdefghijk' and 'abcdefghijk' are both 'abcdefghijk'"):
        compare(found, [Segment(0, "abcdefghijk", 3.0, 4.0, "")], "x")


# ---- parquet -----------------------------------------------------------------------------------


def test_rows_without_bytes_or_with_other_content_are_in_the_ledger():
    pytest.importorskip("pyarrow")
    rows = [dict(row) for row in synthetic.PARQUET_ROWS]
    rows[1]["audio"] = {"bytes": None, "path": "/etc/passwd"}
    rows[2]["audio"] = {"bytes": b"no audio" * 99, "path": ""}
    rows[3]["labels"] = None
    synthetic.parquet("data/parquet", rows)
    use("parquet")
    rows = list(download().values())
    assert [row.status for row in rows] == ["ok", "gone", "corrupt", "ok", "ok"]
    assert rows[1].reason == "its row holds no bytes, only the path '/etc/passwd'"
    assert rows[3].labels == ""


@pytest.mark.parametrize("per_shard", [1, 2, 3, 100])
def test_shards_need_not_end_where_row_groups_do(per_shard):
    make("parquet")
    change_params({"download": {"clips_per_shard": per_shard}})
    rows = download()
    expected = [row["audio"]["bytes"] for row in synthetic.PARQUET_ROWS]
    assert list(stored_clips().values()) == expected
    assert list(rows) == [f"{row['video_id']}_0" for row in synthetic.PARQUET_ROWS]


def test_a_row_group_is_read_in_batches(monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(pipeline.corpus.sources.parquet, "BATCH", 2)
    synthetic.parquet("data/parquet", group=5)
    Path("list.txt").write_text("1-_abcdefgh\n2-_abcdefgh\n4-_abcdefgh\n")
    use("parquet", clips="list.txt")
    download()
    expected = [synthetic.PARQUET_ROWS[i]["audio"]["bytes"] for i in (1, 2, 4)]
    assert list(stored_clips().values()) == expected


def test_only_the_selected_rows_of_a_parquet_file_are_stored():
    make("parquet")
    Path("list.txt").write_text("1-_abcdefgh\n4-_abcdefgh\n")
    use("parquet", clips="list.txt", label_column="human_labels")
    assert {row.recording_id: row.labels for row in download().values()} == {
        "1-_abcdefgh": "Speech,x", "4-_abcdefgh": "Speech,x",
    }  # fmt: skip
    expected = [synthetic.PARQUET_ROWS[i]["audio"]["bytes"] for i in (1, 4)]
    assert list(stored_clips().values()) == expected


def test_a_damaged_row_group_loses_only_its_own_rows():
    make("parquet")
    path = Path("data/parquet/00.parquet")
    content = bytearray(path.read_bytes())
    at = content.index(synthetic.PARQUET_ROWS[2]["audio"]["bytes"][:200]) - 60
    content[at : at + 50] = b"\xff" * 50  # the header of the page with rows 2 and 3
    path.write_bytes(content)
    rows = download().values()
    assert [row.status for row in rows] == ["ok", "ok", "corrupt", "corrupt", "ok"]


def parquet_faults():
    rows = synthetic.PARQUET_ROWS
    yield [{"id": "a", "audio": rows[0]["audio"]}], "has the columns id, audio, but not video_id, l"
    yield [rows[0], rows[0]], "id '0-_abcdefgh' is in data/parquet/00.parquet already"
    yield [rows[0] | {"video_id": None}], "id '' is not a name"
    yield [rows[0] | {"labels": ["a\0b"]}], r"labels 'a\x00b' of '0-_abcdefgh' hold '\x00'"
    yield [rows[0] | {"video_id": "../../a"}], "'../../a' leads out of its folder"


@pytest.mark.parametrize(("rows", "message"), list(parquet_faults()))
def test_a_parquet_file_of_another_layout_is_an_error(rows, message, caplog):
    pytest.importorskip("pyarrow")
    synthetic.parquet("data/parquet", rows)
    use("parquet")
    assert message in failure_of(caplog)


@pytest.mark.parametrize("content", [b"", b"no parquet" * 99])
def test_a_file_that_is_not_parquet_is_an_error(content, caplog):
    pytest.importorskip("pyarrow")
    synthetic.write("data/parquet", {"a.parquet": content})
    use("parquet")
    assert "data/parquet/a.parquet is damaged, or not a Parquet file" in failure_of(caplog)


def test_without_pyarrow_the_message_says_how_to_install_it(monkeypatch, caplog):
    synthetic.write("data/parquet", {"a.parquet": b""})
    use("parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "needs pyarrow, which cannot be imported" in (error := failure_of(caplog))
    assert "pip install pyarrow" in error


# ---- HDF5 --------------------------------------------------------------------------------------


def write_hdf5(name="a.h5", attributes=None, **datasets):
    Path("data/hdf5").mkdir(parents=True, exist_ok=True)
    with h5py.File(Path("data/hdf5", name), "w") as file:
        for key, values in datasets.items():
            file[key] = values
        file.attrs.update(attributes or {})
    use("hdf5")


NAMES = np.array([b"a.wav", b"b.wav"], "S20")
WAVES = np.stack([synthetic.tone(300), synthetic.tone(400)])


def test_classes_are_translated_to_their_ids():
    make("hdf5")
    table = "\n".join(f'{i},/m/{i},"x"' for i in range(527))
    Path("classes.csv").write_text(f"index,mid,display_name\n{table}\n")
    use("hdf5", classes="classes.csv")
    labels = [row.labels for row in download().values() if row.ok]
    assert labels == ["/m/0,/m/5", "/m/2,/m/7", "/m/526"]


@pytest.mark.parametrize("table", ["a,b\n1,2\n", "index,mid\n1,/m/1\n", "index,mid\nx,/m/1\n"])
def test_a_list_of_classes_in_another_layout_is_an_error(table, caplog):
    make("hdf5")
    Path("classes.csv").write_text(table)
    use("hdf5", classes="classes.csv")
    assert "classes.csv" in failure_of(caplog)


def test_the_sample_rate_is_a_parameter_if_the_file_has_none(caplog):
    write_hdf5(audio_name=NAMES, waveform=WAVES)
    assert "does not say its sample rate" in failure_of(caplog)
    use("hdf5", sample_rate=synthetic.RATE)
    assert [row.duration_s for row in download().values()] == [1.0, 1.0]


@pytest.mark.parametrize(("datasets", "message"), [
    ({"x": NAMES}, "holds x |S20 (2,); expected audio_name (text), and"),
    ({}, "holds nothing; expected audio_name"),
    ({"audio_name": NAMES, "waveform": WAVES.astype(np.float32)}, "waveform float32 (2, 22050)"),
    ({"audio_name": NAMES[:1], "waveform": WAVES}, "have different lengths"),
    ({"audio_name": np.array([b"a.wav", b"a.mp3"]), "waveform": WAVES}, "id 'a' is in data/hdf5/a"),
    ({"audio_name": np.array([b"a.wav", b"../b"]), "waveform": WAVES}, "leads out of its folder"),
    ({"audio_name": np.arange(2), "waveform": WAVES}, "data/hdf5/a.h5 holds audio_name int64 (2,)"),
    ({"audio_name": np.array([b"a.wav", b"caf\xe9.wav"]), "waveform": WAVES},
     r"data/hdf5/a.h5: id 'caf\udce9' holds '\udce9'"),
    ({"audio_name": NAMES, "waveform": WAVES, "target": np.ones((1, 527), bool)},
     "data/hdf5/a.h5: audio_name and target have different lengths"),
])  # fmt: skip
def test_an_hdf5_file_of_another_layout_is_an_error(datasets, message, caplog):
    write_hdf5(attributes={"sample_rate": synthetic.RATE}, **datasets)
    assert message in failure_of(caplog)


@pytest.mark.parametrize("rate", ["32k", [32000, 32000], np.inf, -1])
def test_a_sample_rate_that_is_not_a_number_is_an_error(rate, caplog):
    write_hdf5(attributes={"sample_rate": rate}, audio_name=NAMES, waveform=WAVES)
    error = failure_of(caplog)
    assert "data/hdf5/a.h5: the attribute `sample_rate` is" in error and "number of Hz" in error


def test_a_sample_rate_in_a_list_and_a_name_in_utf_8_are_read():
    names = ["é.wav".encode(), b"b.wav"]
    write_hdf5(attributes={"sample_rate": [synthetic.RATE]}, audio_name=names, waveform=WAVES)
    assert {row.recording_id: row.duration_s for row in download().values()} == {"é": 1.0, "b": 1.0}


def test_a_file_that_is_not_hdf5_is_an_error(caplog):
    synthetic.write("data/hdf5", {"a.h5": b"no HDF5" * 99})
    use("hdf5")
    assert "data/hdf5/a.h5 is damaged, or not an HDF5 file" in failure_of(caplog)


def test_an_empty_or_damaged_mp3_is_in_the_ledger():
    Path("data/hdf5").mkdir(parents=True)
    with h5py.File("data/hdf5/a.h5", "w") as file:
        file["audio_name"] = np.array([b"a.mp3", b"b.mp3", b"c.mp3"])
        mp3 = file.create_dataset("mp3", (3,), h5py.vlen_dtype(np.uint8))
        for row, content in enumerate((b"", b"\x00" * 999, audio(300, "mp3"))):
            mp3[row] = np.frombuffer(content, np.uint8)
    use("hdf5")
    assert [row.status for row in download().values()] == ["corrupt", "corrupt", "ok"]


# ---- all ---------------------------------------------------------------------------------------


def test_a_share_of_failures_above_the_limit_stops_the_stage(caplog):
    make("hdf5")
    change_params({"download": {"max_failed": 0.1}})
    assert "1 of 4 clips (25.0%) failed" in failure_of(caplog)


@pytest.mark.parametrize(("recording_id", "message"), [
    ("", "id '' is not a name"), (".", "is not a name"), (" ", "is not a name"),
    ("a\nb", r"holds '\\n'"),
    ("a\u2028b", r"holds '\\u2028'"), ("\udcff", r"holds '\\udcff'"), ("/a", "leads out"),
    ("a/../b", "leads out"), ("a\\..\\b", "leads out"), ("c:/x", "leads out"), ("\\a", "leads out"),
])  # fmt: skip
def test_ids_that_cannot_name_a_clip_are_refused(recording_id, message):
    with pytest.raises(ValueError, match=message):
        check_id(recording_id)


def test_shards_are_read_whatever_the_format_of_their_clips(tmp_path):
    clips = [(f"a.{kind}_0", audio(300, kind)) for kind in ("wav", "flac", "ogg", "mp3", "m4a")]
    tar_shards.write(tmp_path / "0.tar", clips)
    assert list(tar_shards.read(tmp_path / "0.tar", [name for name, _ in clips], "x")) == clips


def test_a_segment_list_and_a_container_restrict_alike():
    segments = [Segment(0, "a", 0.0, 1.0, ""), Segment(1, "b", 5.0, 6.0, "x")]
    Path("list.txt").write_text("b_5000\n")
    assert select(segments, "list.txt") == [Segment(0, "b", 5.0, 6.0, "x")]
    assert select(segments, "") == segments


def test_a_comma_inside_a_label_does_not_split_it():
    assert join_labels(["Speech", "Male speech, man speaking"]) == (
        "Speech,Male speech; man speaking"
    )
    assert join_labels("/m/1,/m/2") == "/m/1,/m/2"  # ids as one text
