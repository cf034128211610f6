"""Data of one's own in each place they may lie, where experiments run: workspace and copies.

Recordings and a task lie in data/folder, are tracked there by `dvc add`, or lie elsewhere. For each
place two experiments are queued, which both need the same stages at the same time.
"""

import json
import re
import shutil
import time
from pathlib import Path
from threading import Thread

import pytest
from dvc_runs import ROOT, commit, copy_repository, dvc, git, stages_run
from synthetic_hear import write_scene_task

from pipeline.core import repository
from pipeline.core.locks import exclusive
from pipeline.core.stage import Stage
from pipeline.corpus.data_folder import require_data
from pipeline.corpus.params import FolderParams

TARGETS = ("download", "hear_tasks@{task}")
PLACES = {  # recordings and tasks, from the repository's root
    "lying": ("data/folder/recordings", "data/folder/tasks"),
    "added": ("data/folder/added", "data/folder/tasks"),
    "outside": ("{outside}/recordings", "../outside/tasks"),
}
LAMBDAS = ("0.001", "0.01")
VIDEOS = sorted((ROOT / "data/sample/videos").glob("*.ogg"), key=lambda path: path.stat().st_size)


def options(folder, place, *more):
    """Options of `dvc exp run` for the data in a place."""
    recordings, tasks = (path.format(outside=folder.parent / "outside") for path in PLACES[place])
    settings = {
        "source": "folder",
        "sources.folder.path": recordings,
        "hear.source": "folder",
        "hear.sources.folder.path": tasks,
        "hear.tasks": f"[{place}-v1]",
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    return [word for option in [*words, *more] for word in ("-S", option)]


def targets(place):
    return [target.format(task=f"{place}-v1") for target in TARGETS]


@pytest.fixture(scope="module")
def main(tmp_path_factory):
    """A repository with data in every place, in which two experiments have run for each."""
    folder = tmp_path_factory.mktemp("own") / "main"
    copy_repository(folder)
    for number, place in enumerate(PLACES):
        recordings, tasks = (
            folder / path.format(outside=folder.parent / "outside") for path in PLACES[place]
        )
        recordings.mkdir(parents=True)
        shutil.copy(VIDEOS[number], recordings)
        write_scene_task(tasks / f"{place}-v1", clips=(2, 1, 1))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    dvc(folder, "add", "data/folder/added", "data/folder/tasks/added-v1")
    commit(folder, "own data")
    for place in PLACES:
        sweep = options(folder, place, f"loss.lambda={','.join(LAMBDAS)}")
        dvc(folder, "exp", "run", "--queue", "-n", place, *sweep, *targets(place))
    dvc(folder, "queue", "start", "-j", "2")
    while re.search("Queued|Running", dvc(folder, "queue", "status")):
        time.sleep(0.5)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_queued_experiments_succeed(main, place):
    for name in (f"{place}-1", f"{place}-2"):
        assert name in dvc(main, "exp", "list", "--name-only"), dvc(main, "queue", "logs", name)


@pytest.mark.slow
def test_changed_data_run_again_from_workspace_and_copy(main):
    stages = ["validate", *targets("lying")]

    def changed():
        return set(json.loads(dvc(main, "status", "--json", *stages)))

    def run_in_copy(name):
        output = dvc(main, "exp", "run", "--temp", "-n", name, *targets("lying"))
        dvc(main, "exp", "apply", name, fails=True)  # it has not made the later outputs
        return stages_run(output)

    dvc(main, "exp", "apply", "lying-1", fails=True)
    assert changed() == set()
    graph = dvc(main, "dag", "--dot")
    for stage in ("download", "validate"):
        assert f'"data/folder/added.dvc" -> "{stage}"' in graph
    for place in ("lying", "added"):
        shutil.copy(VIDEOS[4], main / PLACES[place][0])
        if place == "added":
            dvc(main, "add", PLACES[place][0])
        assert changed() == {"validate", "download"}
        assert run_in_copy(f"{place}-changed") == ["validate", "download"]
        assert changed() == set()


# ---- without DVC ------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of a repository as the current folder; the repository is beside it."""
    for name in ("main", "copy"):
        (tmp_path / name / "data/folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    return tmp_path / "copy"


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_copy_gets_links_to_what_only_the_repository_has(copy):
    main = copy.parent / "main"
    write(main / "data/folder/a/b/x.wav", "x")
    write(main / "data/folder/labels.csv", "of main")
    write(copy / "data/folder/labels.csv", "of the copy")
    (main / "data/folder/elsewhere").symlink_to(main)
    repository.link_missing(Path("data/folder"))
    assert Path("data/folder/a/b/x.wav").read_text() == "x"
    assert not Path("data/folder/a").is_symlink()  # DVC does not follow links to folders
    assert Path("data/folder/elsewhere").is_symlink()
    assert Path("data/folder/labels.csv").read_text() == "of the copy"


def test_what_dvc_has_checked_out_is_left_alone(copy):
    for name in ("kept.wav", "new.wav"):
        write(copy.parent / "main/data/folder/added" / name)
    write(copy / "data/folder/added/kept.wav")
    write(copy / "data/folder/added.dvc")
    repository.link_missing(Path("data/folder"))
    assert [path.name for path in Path("data/folder/added").iterdir()] == ["kept.wav"]


def test_the_repository_itself_gets_no_links(copy, monkeypatch):
    monkeypatch.chdir(copy.parent / "main")
    repository.link_missing(Path("data/folder"))
    assert not repository.in_copy()
    assert not list(Path("data/folder").iterdir())


def test_a_copy_waits_for_the_process_that_makes_the_same_output(copy, caplog):
    caplog.set_level("INFO")
    order = []

    def second():
        with Stage("demo").output("data/demo"):
            order.append("second")

    thread = Thread(target=second)
    with exclusive(Stage("demo").work_folder() / "demo.lock", "first"):
        thread.start()
        while thread.is_alive() and "waiting for it" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("path", ["rec", "rec/{recording_id}.wav"])
def test_a_relative_path_means_the_repository_s(copy, path):
    main = copy.parent / "main"
    assert repository.locate(path) == path  # neither has it
    (main / "rec").mkdir()
    assert repository.locate(path) == str(main / path)
    (copy / "rec").mkdir()
    assert repository.locate(path) == path


def test_addresses_and_templates_without_a_folder_stay_as_they_are(copy):
    for path in ("", "https://example.org/{recording_id}", "{recording_id}", str(copy)):
        assert repository.locate(path) == path


def test_a_dangling_link_is_named_with_its_target(copy):
    write(Path("data/folder/good.wav"))
    repository.refuse_dangling_links(Path("data/folder"))
    Path("data/folder/bad.wav").symlink_to("/nowhere/x.wav")
    message = r"data/folder/bad\.wav is a link to /nowhere/x\.wav, which does not exist.*remove"
    with pytest.raises(FileNotFoundError, match=message):
        repository.refuse_dangling_links(Path("data/folder"))


def test_data_that_are_not_there_stop_the_run(copy):
    params = FolderParams(path="data/folder/recordings", max_clip_s=10.0, clips="")
    with pytest.raises(FileNotFoundError, match=r"no data in data/folder/recordings.*folder\.path"):
        require_data("folder", params)
    write(Path("data/folder/labels.csv"))
    whole = params.model_copy(update={"path": "data/folder"})
    with pytest.raises(FileNotFoundError, match="no data in data/folder"):
        require_data("folder", whole)
    write(Path("data/folder/recordings/x.wav"))
    require_data("folder", params)
    require_data("folder", whole)
    require_data("folder", params.model_copy(update={"path": "/not/mounted/here"}))
