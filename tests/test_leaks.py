"""Stages fingerprint, leaks and exclude, and pre-training without the excluded clips."""

import copy
import json
import pickle
import shutil
import signal
from functools import cache, partial
from pathlib import Path

import pytest
import soundfile
import torch
from synthetic_hear import ROOT, write_task
from synthetic_recordings import RATE, coded, recording
from synthetic_training import CPU, features, settings

import stages.exclude
import stages.fingerprint
import stages.leaks
from pipeline.config import load_config
from pipeline.core import shard_folder
from pipeline.core.files import sha256
from pipeline.core.shard_folder import Manifest
from pipeline.core.stage import run
from pipeline.features import excluded, hdf5_shards
from pipeline.features.front_end import LogMel
from pipeline.features.stats import Totals
from pipeline.leaks import detect, table
from pipeline.leaks.table import Leak, TaskLeaks
from pipeline.pretrain.diagnostics import correlation, example_views
from pipeline.pretrain.index import load_features
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.outputs import data_identity

LOG_MEL = load_config().logmel
TASK = "toy-v1-small"
SHARDS = 2  # of the corpus; the first has one clip
CLIPS = 5


@cache
def corpus():
    """Clips by id; c3 holds the file `planted` from 1.234 s on, lossily coded and 6 dB quieter."""
    clips = {f"c{i}_0": recording(5, seed=100 + i) for i in range(CLIPS)}
    clips["c3_0"] = coded(
        0.5 * recording(9, seed=200)[2 * RATE : 7 * RATE], 44_100, "OGG", "VORBIS"
    )
    return clips


def planted():
    first = round((2 + 1.234) * RATE)
    return recording(9, seed=200)[first : first + 3 * RATE]


def write_corpus(folder):
    front_end = LogMel(LOG_MEL)
    clips = []
    for name, wave in corpus().items():
        log_mel = front_end(torch.from_numpy(wave)).numpy().T
        clips.append(
            hdf5_shards.Clip(name, "", log_mel.astype("float16"), Totals.from_array(log_mel))
        )
    folder.mkdir(parents=True)
    for i, part in enumerate((clips[:1], clips[1:])):
        hdf5_shards.write(shard_folder.shard_path(folder, i, ".h5"), part, LOG_MEL)
    shards = sorted(folder.glob("*.h5"))
    shard_folder.write_sums(folder, {path.name: sha256(path) for path in shards})
    shard_folder.write(folder, Manifest(SHARDS, 2 * CLIPS, CLIPS, CLIPS))
    (folder / "stats.json").write_text('{"mean": -7.0, "std": 4.0}\n')


def write_tests(splits, name=TASK):
    """Write a prepared task with one label; `splits` is split -> file -> wave."""
    labels = {split: {file: ["noise"] for file in files} for split, files in splits.items()}
    folder = write_task(Path("data/hear", name), labels)
    for split, files in splits.items():
        for file, wave in files.items():
            soundfile.write(folder / str(RATE) / split / file, wave, RATE)


def usual_splits(**changes):
    """Train, valid and test with unrelated recordings, except for `changes`."""
    numbers = {"train": 0, "valid": 1, "test": 2}
    splits = {split: {f"{n}.wav": recording(3, seed=300 + n)} for split, n in numbers.items()}
    return splits | changes


@pytest.fixture(autouse=True)
def _leave_signals_as_they_were():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with the committed parameters, features and fingerprints."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "data/logmel")
    shutil.copy(ROOT / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        set_params(folder, "workers: 0 ", "workers: 1 ")
        run("fingerprint", stages.fingerprint.main)
    return folder


@pytest.fixture(autouse=True)
def repository(searched, tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    shutil.copytree(searched, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


def set_params(folder, old, new):
    path = folder / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def search(name=TASK):
    run("leaks", partial(stages.leaks.main, name=name), name)
    return table.read(Path("reports/leaks"), [name])[0]


def exclude(repository, policy="exclude", tasks=(TASK,)):
    set_params(repository, "policy: exclude ", f"policy: {policy} ")
    text = (repository / "params.yaml").read_text()
    begin = text.index("  tasks:")
    end = text.index("  normalization:")
    lines = "".join(f"    - {task}\n" for task in tasks)
    (repository / "params.yaml").write_text(f"{text[:begin]}  tasks:\n{lines}{text[end:]}")
    run("exclude", stages.exclude.main)
    return excluded.read(Path("data/excluded.csv"))


def message(caplog, stage, *arguments) -> str:
    """Return the message of a failing stage, which has no traceback."""
    with pytest.raises(SystemExit):
        stage(*arguments)
    assert "Traceback" not in caplog.text
    return caplog.records[-1].getMessage()


# ---- detection --------------------------------------------------------------------------------


def test_a_test_file_inside_a_clip_is_found_at_its_start():
    write_tests(usual_splits(test={"a.wav": recording(3, seed=400), "b.wav": planted()}))
    result = search()
    (leak,) = result.leaks
    assert (result.task, result.files, result.unchecked, result.clips) == (TASK, 2, 0, CLIPS)
    assert (leak.clip_id, leak.split, leak.file, leak.how) == ("c3_0", "test", "b.wav", "audio")
    assert leak.offset_s == pytest.approx(1.234, abs=0.02)
    assert leak.similarity > 0.85


@pytest.mark.parametrize("split", ["train", "valid"])
def test_only_the_test_split_counts(split):
    write_tests(usual_splits(**{split: {"b.wav": planted()}}))
    assert search().leaks == []


def test_every_fold_is_a_test_split():
    folds = {f"fold{i:02d}": {f"{i}.wav": recording(3, seed=500 + i)} for i in range(3)}
    folds["fold01"] = {"b.wav": planted()}
    write_tests(folds)
    result = search()
    assert result.files == 3
    assert [(leak.clip_id, leak.split, leak.file) for leak in result.leaks] == [
        ("c3_0", "fold01", "b.wav")
    ]


def test_one_job_per_shard_and_file_gives_the_same_result(monkeypatch):
    def map_pickled(function, jobs, workers, description):
        assert len(jobs) == SHARDS
        return [function(pickle.loads(pickle.dumps(job))) for job in jobs]

    write_tests(usual_splits(test={"a.wav": recording(3, seed=400), "b.wav": planted()}))
    at_once = search()
    monkeypatch.setattr(detect, "CLIPS_PER_JOB", 1)
    monkeypatch.setattr(detect, "FILES_PER_JOB", 1)
    monkeypatch.setattr(detect, "map_shards", map_pickled)
    assert search() == at_once
    assert len(at_once.leaks) == 1


def test_files_that_cannot_be_compared_are_counted():
    short, silent = recording(3, seed=600)[: RATE // 4], 0 * planted()
    tiny = planted()[:10]  # not even one frame
    write_tests(
        usual_splits(test={"a.wav": short, "b.wav": silent, "c.wav": tiny, "d.wav": planted()})
    )
    result = search()
    assert (result.files, result.unchecked, len(result.leaks)) == (4, 3, 1)


def test_a_task_at_another_sample_rate_is_refused(caplog):
    write_tests(usual_splits())
    path = Path("data/hear", TASK, str(RATE), "test", "2.wav")
    soundfile.write(path, planted(), 22_050)
    assert "22050 Hz, expected logmel.sample_rate = 16000 Hz" in message(caplog, search)
    assert not Path("reports").exists()


FREESOUND = [("test", "123.wav"), ("test", "1-456-a-0.wav"), ("test", "x789.wav")]


@pytest.mark.parametrize(
    ("source", "task", "expected"),
    [
        ("fsd50k", "fsd50k-v1.0-full", {"123_0": "123.wav"}),
        ("fsd50k", "esc50-v2.0.0-full", {"456_0": "1-456-a-0.wav"}),
        ("fsd50k", "fsd50kother-v1", {}),
        ("fsd50k", "nsynth_pitch-v2.2.3-5h", {}),
        ("folder", "fsd50k-v1.0-full", {}),
    ],
)
def test_ids_count_only_if_both_sides_have_freesound_ids(source, task, expected):
    clips = ["123_0", "456_0", "789_0", "1234_0"]
    result = detect.leaks_by_id(clips, source, task, FREESOUND)
    assert {leak.clip_id: leak.file for leak in result} == expected
    assert all((leak.how, leak.offset_s) == ("id", None) for leak in result)


def test_a_clip_with_the_same_id_is_found_even_if_it_sounds_different(repository, monkeypatch):
    set_params(repository, "source: sample ", "source: fsd50k ")
    monkeypatch.setattr(detect, "FREESOUND_FILES", {"fsd50k": "(c[0-9]+)"})
    name = "fsd50k-v1.0-full"
    write_tests(usual_splits(test={"c1.wav": recording(3, seed=700), "b.wav": planted()}), name)
    result = search(name)
    assert [(leak.clip_id, leak.how) for leak in result.leaks] == [
        ("c1_0", "id"),
        ("c3_0", "audio"),
    ]
    assert result.by == {"id": 1, "audio": 1}


# ---- exclusion -------------------------------------------------------------------------------


def leaky_and_clean():
    write_tests(usual_splits(test={"b.wav": planted()}))
    write_tests(usual_splits(), "clean-v1-small")
    search()
    search("clean-v1-small")
    return TASK, "clean-v1-small"


def test_exclude_lists_the_clips_of_the_chosen_tasks(repository):
    tasks = leaky_and_clean()
    assert exclude(repository, "exclude", tasks[1:]) == []
    assert exclude(repository, "exclude", tasks) == ["c3_0"]
    assert Path("data/excluded.csv").read_text() == "clip_id\nc3_0\n"


def test_report_excludes_nothing(repository):
    assert exclude(repository, "report", leaky_and_clean()) == []


def test_refuse_stops_and_names_count_task_clip_and_remedy(repository, caplog):
    tasks = leaky_and_clean()
    text = message(caplog, exclude, repository, "refuse", tasks)
    assert "1 clips of the pre-training data are in test splits (leaks.policy = refuse)" in text
    assert f"{TASK}: 1, for example c3_0 (test/b.wav)" in text
    assert "clean" not in text
    assert "Set leaks.policy to exclude" in text
    assert not Path("data/excluded.csv").exists()


def test_refuse_accepts_clean_data(repository):
    leaky_and_clean()
    assert exclude(repository, "refuse", ["clean-v1-small"]) == []


def test_the_list_does_not_depend_on_which_tasks_found_a_clip():
    leak = Leak("c3_0", "test", "b.wav", "audio", 1.2, 0.9)
    result = [TaskLeaks(task=t, files=1, unchecked=0, clips=9, leaks=[leak]) for t in ("a", "b")]
    assert table.clips_to_exclude(result, "exclude") == table.clips_to_exclude(
        result[:1], "exclude"
    )


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"task": "other"}'])
def test_a_missing_or_broken_result_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / f"{TASK}.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{TASK}.json.*leaks@{TASK}"):
        table.read(tmp_path, [TASK])


def test_a_result_of_another_task_is_refused(tmp_path):
    result = TaskLeaks(task="other", files=1, unchecked=0, clips=1, leaks=[])
    table.write(tmp_path / f"{TASK}.json", result)
    with pytest.raises(ValueError, match="belongs to task 'other'"):
        table.read(tmp_path, [TASK])


def test_a_missing_or_foreign_list_is_refused(tmp_path):
    path = tmp_path / "excluded.csv"
    with pytest.raises(FileNotFoundError, match="dvc repro exclude"):
        excluded.read(path)
    path.write_text("row,clip_id\n")
    with pytest.raises(ValueError, match="begins with 'row,clip_id'"):
        excluded.read(path)


# ---- pre-training -----------------------------------------------------------------------------

LEFT_OUT = ["clip3", "clip40", "clip63"]


def removed_by_hand(data):
    """The same features, as if the clips had never been there."""
    rest = [i for i, name in enumerate(data.clip_id) if name not in LEFT_OUT]
    frames = torch.cat([data.frames[data.start[i] : data.start[i + 1]] for i in rest])
    length = int(data.start[1])
    start = torch.arange(len(rest) + 1) * length
    names = [data.clip_id[i] for i in rest]
    return type(data)(frames, start, names, data.log_mel, data.mean, data.std)


def test_training_equals_training_on_a_corpus_without_the_clips():
    data = features()
    trainers = [
        Trainer(settings(), part, CPU) for part in (data.excluding(LEFT_OUT), removed_by_hand(data))
    ]
    for trainer in trainers:
        trainer.run()
    left_out, never_there = trainers
    exact = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(left_out.model.state_dict(), never_there.model.state_dict(), **exact)
    assert left_out.history.epochs == never_there.history.epochs
    torch.testing.assert_close(
        correlation(left_out.updater), correlation(never_there.updater), **exact
    )


def test_an_excluded_clip_is_never_drawn():
    data = features().excluding(LEFT_OUT)
    trainer = Trainer(settings(), data, CPU)
    numbers = {data.clip_id.index(name) for name in LEFT_OUT}
    drawn = set()
    for epoch in range(20):
        drawn |= set(trainer._sample(epoch).clip.flatten().tolist())
    assert drawn == set(range(64)) - numbers
    shown, *_ = example_views(trainer.updater, 61)
    assert set(shown.tolist()) == drawn
    assert len(data) == 61


def test_a_run_without_them_resumes_bit_for_bit():
    def begin():
        return Trainer(settings(), features().excluding(LEFT_OUT), CPU)

    unbroken = begin()
    states = []
    unbroken.run(observe=lambda: states.append(copy.deepcopy(unbroken.state_dict())))
    resumed = begin()
    resumed.load_state_dict(states[0])
    assert 0 < resumed.step < unbroken.step
    resumed.run()
    torch.testing.assert_close(
        resumed.model.state_dict(), unbroken.model.state_dict(), rtol=0, atol=0
    )


def test_states_belong_to_one_list_of_excluded_clips(tmp_path):
    lists = [tmp_path / "none.csv", tmp_path / "one.csv"]
    excluded.write(lists[0], [])
    excluded.write(lists[1], ["c3_0"])
    none, one = (data_identity(Path("data/logmel"), path) for path in lists)
    assert none != one
    assert none == data_identity(Path("data/logmel"), lists[0])


def test_features_exclude_what_the_stages_list(repository):
    leaky_and_clean()
    data = load_features(Path("data/logmel"))
    assert len(data) == CLIPS
    left = data.excluding(exclude(repository, "exclude"))
    assert len(left) == CLIPS - 1
    assert [left.clip_id[i] for i in left.train_clips] == ["c0_0", "c1_0", "c2_0", "c4_0"]
    assert (left.mean, left.std) == (data.mean, data.std)
    assert data.excluding([]) is data


def test_excluding_unknown_clips_or_all_clips_is_refused():
    with pytest.raises(ValueError, match="1 clips to leave out, first other, are not among the 64"):
        features().excluding(["clip1", "other"])
    with pytest.raises(ValueError, match="All 64 clips are in test splits"):
        features().excluding([f"clip{i}" for i in range(64)])


def test_the_result_is_json_as_documented():
    write_tests(usual_splits(test={"b.wav": planted()}))
    search()
    content = json.loads(Path(f"reports/leaks/{TASK}.json").read_text())
    assert list(content) == ["task", "files", "unchecked", "clips", "leaks"]
    assert set(content["leaks"][0]) == {
        "clip_id", "split", "file", "how", "offset_s", "similarity",
    }  # fmt: skip
