"""Stage hear_tasks with all 18 tasks of a record, and with tasks from a folder."""

import io
import re
import shutil
import signal
import tarfile
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from dvc.utils.hydra import apply_overrides
from synthetic_hear import ROOT
from zenodo_server import TASKS, Miniature, files, key, label_files, metadata, pack, serve

import stages.hear_tasks
import stages.validate
from pipeline.config import load_config
from pipeline.core.stage import run
from pipeline.hear.fetch import archive
from pipeline.hear.tasks.task import read_task

NAME = "tfds_crema_d-1.0.0-full"


@pytest.fixture(scope="module")
def _server():
    with serve({key(name): pack(files(name)) for name in TASKS}) as zenodo:
        yield zenodo


@pytest.fixture
def site(_server):
    _server.faults.clear()
    _server.requests.clear()
    return _server


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data/sample").mkdir(parents=True)
    (tmp_path / "data/sample/segments.csv").touch()
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def use(**options):
    """Change params.yaml as `dvc exp run -S` does; `__` replaces the dots."""
    text = changed_params(tuple(f"{k.replace('__', '.')}={v}" for k, v in options.items()))
    Path("params.yaml").write_text(text)


@cache
def changed_params(options):
    path = Path("changed.yaml")
    shutil.copy(ROOT / "params.yaml", path)
    apply_overrides(path, ["network.backoff_s=0.0", *options])
    return path.read_text()


def use_record(site):
    """Take the tasks from a record."""
    use(hear__source="zenodo", hear__sources__zenodo__listing=f"'{site.listing}'")


def use_folder(path, source="sample"):
    """Take the tasks from a folder."""
    use(hear__source="folder", hear__sources__folder__path=path, source=source)


def publish(name):
    run("hear_tasks", partial(stages.hear_tasks.main, name=name), name)


def published(repository, name=NAME):
    folder = repository / "data/hear" / name
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", TASKS)
def test_each_of_the_18_tasks_comes_from_the_record(repository, site, name):
    use_record(site)
    publish(name)
    task = read_task(repository / "data/hear" / name)
    expected = metadata(name)
    assert (
        task.metadata.model_dump().items()
        >= {
            key: expected[key] for key in ("task_name", "splits", "evaluation", "split_mode")
        }.items()
    )
    assert {split: list(files) for split, files in task.labels.items()} == {
        split: list(files) for split, files in label_files(name).items()
    }
    check_audio(task, TASKS[name])
    assert not list((repository / ".work/archives").iterdir())


def check_audio(task, miniature: Miniature):
    """Check that each clip is the tone of its number, at 16 kHz, with little noise."""
    seconds = 0.6 if miniature.events else 0.1
    time = np.arange(round(seconds * 16_000)) / 16_000
    for split, names in task.labels.items():
        for number, name in enumerate(names):
            wave, rate = soundfile.read(task.audio(16_000, split) / name)
            assert (rate, len(wave)) == (16_000, len(time))
            tone = 0.3 * np.sin(2 * np.pi * 500 * 2 ** (number % 3) * time)
            assert np.abs(wave - tone)[50:-50].max() < 0.035  # aliased noise: over 0.04


def test_tasks_that_share_audio_have_identical_files(repository, site):
    use_record(site)
    for name in ("mridangam_stroke-v1.5-full", "mridangam_tonic-v1.5-full"):
        publish(name)
    stroke, tonic = (
        {n: data for n, data in published(repository, name).items() if n.endswith(".wav")}
        for name in ("mridangam_stroke-v1.5-full", "mridangam_tonic-v1.5-full")
    )
    assert stroke == tonic


def test_a_folder_with_the_unpacked_archive_gives_the_same_bytes(repository, site):
    use_record(site)
    publish(NAME)
    from_record = published(repository)
    shutil.rmtree(repository / "data")
    shutil.copy(ROOT / "params.yaml", repository)
    with tarfile.open(fileobj=io.BytesIO(site.archives[key(NAME)])) as tar:
        tar.extractall(repository / "elsewhere", filter="data")
    use_folder(repository / "elsewhere/tasks")
    publish(NAME)
    assert published(repository) == from_record


def test_a_folder_with_the_front_ends_rate_is_preferred_to_a_higher_one(repository):
    for path, content in files(NAME).items():
        target = repository / "here" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        if path.endswith(".wav"):
            other = repository / "here" / path.replace("48000", "16000")
            other.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(other, np.full(800, 0.5), 16_000)
    use_folder(repository / "here/tasks")
    publish(NAME)
    wave, _ = soundfile.read(repository / f"data/hear/{NAME}/16000/fold00/fold00_0.wav")
    np.testing.assert_array_equal(wave, np.full(800, 0.5))


def message(caplog, action) -> str:
    with pytest.raises(SystemExit) as error:
        action()
    assert error.value.code == 1
    assert "Traceback" not in caplog.text
    return caplog.records[-1].getMessage()


def test_a_failing_site_publishes_nothing_and_the_next_run_resumes(repository, site, caplog):
    use_record(site)
    for fault, words in (
        (["corrupt", "corrupt"], "does not have the md5"),
        ([404], "cannot be downloaded (404"),
        ([503] * 3, "cannot be downloaded after 3 attempts (503"),
    ):
        site.faults[key(NAME)] = list(fault)
        assert words in message(caplog, lambda: publish(NAME))
        assert not (repository / "data/hear").exists()
    site.faults[key(NAME)] = ["break", 503, "corrupt"]
    publish(NAME)
    assert published(repository)


def test_an_interrupted_unpacking_publishes_nothing_and_keeps_the_archive(
    repository, site, monkeypatch, caplog
):
    use_record(site)
    original, clips = archive.publish_clip, []

    def stop_at_the_tenth(*arguments):
        clips.append(arguments)
        if len(clips) == 10:
            signal.raise_signal(signal.SIGTERM)
        original(*arguments)

    monkeypatch.setattr(archive, "publish_clip", stop_at_the_tenth)
    with pytest.raises(SystemExit):
        publish(NAME)
    assert "interrupted; nothing was published" in caplog.text
    assert not (repository / "data/hear").exists()
    site.requests.clear()
    publish(NAME)
    assert published(repository)
    assert [name for name, _ in site.requests] == ["6332517"]  # the archive was there


def test_validate_lets_git_see_the_changes_of_an_experiment(repository, monkeypatch):
    written = Path("params.yaml").stat().st_mtime
    stages.validate.mark_as_edited(Path("params.yaml"))
    assert Path("params.yaml").stat().st_mtime == written
    monkeypatch.setenv("DVC_EXP_NAME", "toy-name")
    stages.validate.mark_as_edited(Path("params.yaml"))
    assert Path("params.yaml").stat().st_mtime >= written + 1  # Git compares seconds


def test_validate_needs_no_network_for_a_record(repository):
    use(hear__source="zenodo", hear__tasks=f"[{','.join(TASKS)}]", probe__tasks="[]")
    run("validate", stages.validate.main)
    assert (repository / "reports/config.ok").exists()
    assert len(load_config().hear.tasks) == 18


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("esc50-v2.0.1-full", "did you mean 'esc50-v2.0.0-full'"),
        ("toy", "it has beehive_states_fold0-v2-full, .*, vox_lingua_top10-hear2021-full"),
    ],
)
def test_validate_knows_the_tasks_of_hear_s_record(repository, caplog, name, hint):
    settings = {"hear__source": "zenodo", "hear__tasks": f"[{name}]", "probe__tasks": "[]"}
    use(**settings)
    text = message(caplog, lambda: run("validate", stages.validate.main))
    assert re.search(rf"hear\.tasks: {name!r} is not a task in Zenodo record 6332517: {hint}", text)
    assert "hear.source = folder" in text
    use(**settings, hear__sources__zenodo__record=7)  # another record may have other tasks
    run("validate", stages.validate.main)


def test_validate_looks_into_the_chosen_folder(repository, caplog):
    use_folder(repository / "here")
    text = message(caplog, lambda: run("validate", stages.validate.main))
    assert f"is not a task in {repository / 'here'}; available: none" in text


def test_tasks_inside_the_pre_training_corpus_are_refused(repository):
    use_folder("data/folder/tasks", source="folder")
    load_config()  # the defaults go together
    use(hear__source="folder", source="folder", sources__folder__path="data/folder")
    with pytest.raises(ValueError, match=r"hear\.sources\.folder\.path = 'data/folder/tasks' lies"):
        load_config()
