"""Archives of HEAR tasks: unpacked as a folder is published, never outside their folder."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from synthetic_hear import wave
from zenodo_server import RATE, TASKS, files, pack

from pipeline.hear.fetch.archive import unpack_task
from pipeline.hear.tasks.audio import publish_task
from pipeline.hear.tasks.task import read_task

NAME = "esc50-v2.0.0-full"
BASE = f"tasks/{NAME}"
CLIP = f"{BASE}/48000/fold01/fold01_2.wav"


def unpacked(tmp_path, contents, name=NAME, sample_rate=16_000, max_bytes=1e9):
    """Unpack an archive of these files (or with these bytes) into tmp_path/task."""
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(contents if isinstance(contents, bytes) else pack(contents))
    folder = tmp_path / "task"
    folder.mkdir()
    unpack_task(archive, name, folder, sample_rate, max_bytes)
    return folder


def contents_of(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("order", [list, reversed])  # lists after and before the audio
@pytest.mark.parametrize("name", [NAME, "fsd50k-v1.0-full", "maestro-v3.0.0-5h"])
def test_an_archive_gives_the_same_files_as_its_unpacked_folder(tmp_path, name, order):
    """Compare with tarfile's own extraction."""
    contents = dict(order(list(files(name).items())))
    with tarfile.open(fileobj=io.BytesIO(pack(contents))) as tar:
        tar.extractall(tmp_path / "plain", filter="data")
    published = tmp_path / "published"
    published.mkdir()
    publish_task(read_task(tmp_path / "plain/tasks" / name), published, 16_000, 1e9)
    assert contents_of(unpacked(tmp_path, contents, name)) == contents_of(published)


def test_audio_of_the_right_rate_is_copied(tmp_path):
    contents = files(NAME)
    folder = unpacked(tmp_path, contents, sample_rate=RATE)
    assert {f"{BASE}/{name}": data for name, data in contents_of(folder).items()} == contents


@pytest.mark.parametrize("mode", ["w", "w:xz"])
def test_the_compression_does_not_matter(tmp_path, mode):
    plain, other = gzip.decompress(pack(files(NAME))), io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(plain)) as tar,
        tarfile.open(fileobj=other, mode=mode) as t,
    ):
        for member in tar:
            t.addfile(member, tar.extractfile(member))
    assert len(contents_of(unpacked(tmp_path, other.getvalue()))) == 5 * 6 + 5 + 2


def test_unlisted_files_are_skipped_even_if_invalid(tmp_path):
    expected = contents_of(unpacked(tmp_path, files(NAME)))
    (tmp_path / "second").mkdir()
    more = {
        "README": b"x",
        f"{BASE}/notes.txt": b"x",
        f"{BASE}/fold99.json": b"{",
        f"{BASE}/48000/fold00/extra.wav": b"no audio",
        f"{BASE}/48000/._x/y/z.wav": b"",
        "tasks/other-v1-full/task_metadata.json": b"{",
    }
    assert contents_of(unpacked(tmp_path / "second", {**more, **files(NAME)})) == expected


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside.json"),
        member(f"{BASE}/../../../outside.json"),
        member(f"{BASE}/48000/../outside.wav"),
        member("/outside.json"),
        member(f"/{BASE}/outside.json"),
        member(f"{BASE}/a.json", tarfile.SYMTYPE, "/etc/hostname"),
        member(f"{BASE}/a.json", tarfile.SYMTYPE, "../../../outside.json"),
        member(f"{BASE}/a.json", tarfile.LNKTYPE, "../outside.json"),
        member(f"{BASE}/a.json", tarfile.CHRTYPE),
        member(f"{BASE}/a.json", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type.decode()} {info.linkname}",
)
def test_no_member_is_written_outside_the_folder(tmp_path, bad):
    with pytest.raises(ValueError, match=r"a\.tar\.gz cannot be unpacked"):
        unpacked(tmp_path, pack(files(NAME), bad))
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "task"}
    assert not contents_of(tmp_path / "task")


def test_a_link_inside_the_archive_gives_its_targets_content(tmp_path):
    contents = files(NAME)
    target = f"{BASE}/48000/fold00/fold00_0.wav"
    linked = contents | {CLIP: contents[target]}
    expected = contents_of(unpacked(tmp_path, linked))
    (tmp_path / "second").mkdir()
    del contents[CLIP]
    links = pack(contents, member(CLIP, tarfile.SYMTYPE, "../fold00/fold00_0.wav"))
    assert contents_of(unpacked(tmp_path / "second", links)) == expected


def test_a_dangling_link_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be unpacked: .*absent"):
        unpacked(tmp_path, pack(files(NAME), member(CLIP, tarfile.SYMTYPE, "absent")))


def sized(name, size):
    """A sparse member that claims `size` bytes of which none are stored."""
    info = member(name)
    map_of = {"major": "0", "minor": "1", "map": f"{size},0", "size": str(size), "name": name}
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in map_of.items()}
    return info


@pytest.mark.parametrize("name", [CLIP, f"{BASE}/fold00.json"])
def test_a_listed_file_that_claims_to_be_huge_is_named_and_not_read(tmp_path, name):
    contents = files(NAME)
    del contents[name]
    message = rf"a\.tar\.gz.*'{name}' has 1,000,000,000,000 bytes, more than 1000 MB \(hear"
    with pytest.raises(ValueError, match=message):
        unpacked(tmp_path, pack(contents, sized(name, 10**12)))


def test_an_unlisted_file_that_claims_to_be_huge_is_skipped(tmp_path):
    expected = contents_of(unpacked(tmp_path, files(NAME)))
    (tmp_path / "second").mkdir()
    huge = sized(f"{BASE}/48000/fold00/unlisted.wav", 10**12)
    assert contents_of(unpacked(tmp_path / "second", pack(files(NAME), huge))) == expected


def test_a_link_to_a_file_that_is_too_large_is_not_followed(tmp_path):
    contents = files(NAME)
    target = f"{BASE}/48000/fold00/fold00_0.wav"
    contents |= {target: wav(np.tile(TONE, 10))}
    del contents[CLIP]
    links = pack(contents, member(CLIP, tarfile.SYMTYPE, "../fold00/fold00_0.wav"))
    with pytest.raises(ValueError, match=r"has 96,044 bytes, more than 0\.05 MB"):
        unpacked(tmp_path, links, max_bytes=5e4)


def with_zero_byte(name):
    info = member(name)
    info.pax_headers = {"path": name.replace(".", "\0.")}
    return info


LONG = "x" * 300


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member(CLIP, tarfile.SYMTYPE, "fold01_2.wav"), "fold01_2.wav' is a link that leads to"),
        (member(f"{BASE}/{LONG}.json"), f"{LONG}.json' cannot be the name of a file"),
        (member(f"{BASE}/48000/fold00/{LONG}.wav"), f"{LONG}.wav' cannot be the name"),
        (member(f"{BASE}/48000/{LONG}/a.wav"), f"{LONG}/a.wav' cannot be the name"),
        (with_zero_byte(f"{BASE}/a.json"), r"a\\x00.json' cannot be the name"),
    ],
    ids=["link to itself", "long list", "long clip", "long folder", "zero byte"],
)
def test_a_member_that_cannot_be_written_is_named(tmp_path, bad, message):
    contents = files(NAME)
    contents.pop(bad.name, None)
    with pytest.raises(ValueError, match=rf"a\.tar\.gz cannot be unpacked: .*{message}"):
        unpacked(tmp_path, pack(contents, bad))


def test_a_file_that_has_the_name_of_a_folder_is_skipped(tmp_path):
    expected = contents_of(unpacked(tmp_path, files(NAME)))
    (tmp_path / "second").mkdir()
    content = pack(files(NAME), member(f"{BASE}/16000"))
    assert contents_of(unpacked(tmp_path / "second", content)) == expected


def wav(samples, rate=RATE, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", **options)
    return file.getvalue()


TONE = wave("low", 0.1, np.random.default_rng(0), RATE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<html>", "not audio"),
        (wav(TONE[:0]), "holds no samples"),
        (wav(np.stack([TONE, TONE], axis=1)), "has 2 channels, expected 1"),
        (wav(np.where(TONE > 0, np.nan, TONE), subtype="FLOAT"), "samples that are not finite"),
    ],
)
def test_an_invalid_clip_is_named_with_its_task(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"{CLIP}.*{message}"):
        unpacked(tmp_path, files(NAME) | {CLIP: content})


def test_a_clip_with_another_rate_than_its_folder_is_resampled_from_its_own_rate(tmp_path):
    folder = unpacked(tmp_path, files(NAME) | {CLIP: wav(TONE, 32_000)})
    info = soundfile.info(folder / "16000/fold01/fold01_2.wav")
    assert (info.samplerate, info.frames) == (16_000, len(TONE) // 2)


@pytest.mark.parametrize("missing", [CLIP, f"{BASE}/fold03.json", f"{BASE}/labelvocabulary.csv"])
def test_a_missing_file_is_named(tmp_path, missing):
    contents = files(NAME)
    del contents[missing]
    with pytest.raises(FileNotFoundError, match=f"{missing.rsplit('/', 1)[-1]} is missing"):
        unpacked(tmp_path, contents)


def test_an_archive_without_the_task_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tar\.gz has audio of no Hz in tasks/esc50"):
        unpacked(tmp_path, files("vocal_imitation-v1.1.3-full"))


def test_an_archive_with_two_sample_rates_is_refused(tmp_path):
    more = {CLIP.replace("48000", "16000"): wav(TONE, 16_000)}
    with pytest.raises(ValueError, match=r"audio of 16000, 48000 Hz .*hear\.source = folder"):
        unpacked(tmp_path, files(NAME) | more)


@pytest.mark.parametrize("content", [b"", b"no archive", "half"])
def test_a_damaged_archive_is_named(tmp_path, content):
    complete = pack(files(NAME))
    with pytest.raises(ValueError, match=r"a\.tar\.gz cannot be unpacked"):
        unpacked(tmp_path, complete[: len(complete) // 2] if content == "half" else content)


def test_every_miniature_has_the_kind_of_the_real_task():
    """Compare with the benchmark's table: kind, splits, first metric."""
    expected = {
        "scene multiclass new_split_kfold top1_acc": 9,
        "scene multiclass presplit_kfold top1_acc": 1,
        "scene multiclass new_split_kfold mAP": 1,
        "scene multiclass trainvaltest top1_acc": 2,
        "scene multiclass trainvaltest pitch_acc": 2,
        "scene multilabel trainvaltest mAP": 1,
        "event multilabel trainvaltest event_onset_200ms_fms": 1,
        "event multilabel new_split_kfold event_onset_50ms_fms": 1,
    }
    counts = {}
    for name in TASKS:
        data = json.loads(files(name)[f"tasks/{name}/task_metadata.json"])
        keys = ("embedding_type", "prediction_type", "split_mode")
        kind = " ".join([*(data[key] for key in keys), data["evaluation"][0]])
        counts[kind] = counts.get(kind, 0) + 1
    assert counts == expected
