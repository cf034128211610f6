"""What surrounds every stage: atomic outputs, edited parameters, locks, messages, run times."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core import stage as stage_module
from pipeline.core.files import open_files_hint
from pipeline.core.stage import Stage, arguments, publish, run, runtimes
from pipeline.pretrain.params import LossParams

ROOT = Path(__file__).parents[1]
OPEN_FILES = (
    r"Too many open files'?\)?\nThis shell allows a process \d+ open files \(`ulimit -n`\)\. "
)


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """An empty folder with the committed params.yaml as the current one."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def edit_params(old, new):
    path = Path("params.yaml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_output_appears_only_when_it_is_complete():
    with Stage("demo").output("data/demo") as folder:
        (folder / "a").write_text("1")
        assert not Path("data/demo").exists()
    assert Path("data/demo/a").read_text() == "1"


def test_a_failed_stage_publishes_nothing_and_keeps_the_previous_output():
    with Stage("demo").output("data/demo") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(ValueError, match="broken"), Stage("demo").output("data/demo") as folder:
        (folder / "a").write_text("half")
        raise ValueError("broken")
    assert Path("data/demo/a").read_text() == "old"


def test_a_new_output_replaces_the_whole_previous_one():
    for name in ("a", "b"):
        with Stage("demo").output("data/demo") as folder:
            (folder / name).touch()
    assert [p.name for p in Path("data/demo").iterdir()] == ["b"]


def test_an_output_that_does_not_fit_on_its_file_system_leaves_the_previous_one(monkeypatch):
    with Stage("demo").output("data/demo") as folder:
        (folder / "a").write_text("old")

    def copy_half(source, target):
        shutil.copytree(source, target)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage_module.shutil, "move", copy_half)
    with pytest.raises(OSError, match="No space"), Stage("demo").output("data/demo") as folder:
        (folder / "a").write_text("new")
    assert Path("data/demo/a").read_text() == "old"
    assert [path.name for path in Path("data").iterdir()] == ["demo"]


def test_the_next_publish_removes_what_a_killed_one_has_left():
    for name in (".demo.new", ".demo.old"):
        Path("data", name).mkdir(parents=True)
    with Stage("demo").output("data/demo") as folder:
        (folder / "a").touch()
    assert [path.name for path in Path("data").iterdir()] == ["demo"]


def test_links_that_stand_for_an_output_are_replaced_not_followed(repository):
    """DVC links outputs to its read-only cache; a user may have linked a folder elsewhere."""
    cached, elsewhere = repository / "cached", repository / "elsewhere"
    elsewhere.mkdir()
    for path in (cached, elsewhere / "a"):
        path.write_text("old")
        path.chmod(0o444)
    Path("file").hardlink_to(cached)
    Path("symlink").symlink_to(cached)
    Path("folder").symlink_to(elsewhere)
    Path("inside").mkdir()
    Path("inside/a").hardlink_to(cached)
    for name in ("file", "symlink"):
        Path("made").write_text("new")
        publish(Path("made"), Path(name))
        assert Path(name).read_text() == "new"
    for name in ("folder", "inside"):
        Path("made").mkdir()
        Path("made/a").write_text("new")
        publish(Path("made"), Path(name))
        assert Path(name, "a").read_text() == "new"
    assert cached.read_text() == (elsewhere / "a").read_text() == "old"


def test_params_edited_while_a_stage_runs_are_noticed_and_nothing_is_published():
    stage = Stage("demo")
    stage.load("loss", LossParams)
    with (
        pytest.raises(RuntimeError, match=r"loss in params\.yaml changed .*Nothing was published"),
        stage.output("data/demo") as folder,
    ):
        (folder / "a").touch()
        edit_params("lambda: 0.005", "lambda: 0.5")
    assert not Path("data/demo").exists()


def test_an_edit_of_another_section_does_not_matter():
    stage = Stage("demo")
    stage.load("loss", LossParams)
    with stage.output("data/demo"):
        edit_params("epochs: ", "epochs: 1")
    assert Path("data/demo").exists()


def test_two_processes_do_not_work_on_one_configuration():
    with (
        Stage("demo").output("data/demo"),
        pytest.raises(RuntimeError, match="Another process is running the same configuration"),
        Stage("demo").output("data/demo"),
    ):
        pass


def test_one_stage_may_have_two_outputs():
    stage = Stage("demo")
    with stage.output("data/a") as a, stage.output("data/b") as b:
        (a / "x").touch()
        (b / "y").touch()
    assert Path("data/a/x").exists()
    assert Path("data/b/y").exists()


def test_an_output_may_be_a_file():
    for text in ("first", "second"):
        with Stage("demo").output("data/demo.json", file=True) as path:
            assert not path.exists()
            path.write_text(text)
    assert Path("data/demo.json").read_text() == "second"


def test_work_is_kept_in_the_main_repository_also_inside_a_temporary_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert (tmp_path / "main" / ".work") in Stage("demo").work_folder().parents


def test_another_configuration_has_another_work_folder():
    first, second = Stage("demo"), Stage("demo")
    first.load("loss", LossParams)
    edit_params("lambda: 0.005", "lambda: 0.5")
    second.load("loss", LossParams)
    assert first.work_folder() != second.work_folder()
    assert first.work_folder("x") != first.work_folder("y")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("the reason"), "the reason"),
        (FileNotFoundError("x is missing; run y"), "x is missing; run y"),
        (
            OSError(errno.ENOSPC, "No space left on device", "data/x"),
            r"No space left on device: 'data/x'\nFree space: \d+\.\d GB at /.*; nothing was publ",
        ),
        (OSError("errno = 28, error message = 'No space left on device'"), "Free space"),
        (MemoryError(), r"demo: There is not enough memory\. Free some"),
        (MemoryError("Unable to allocate 7 TiB"), r"enough memory \(Unable to allocate 7 TiB\)\."),
        (
            shutil.Error(
                [(f"a/{i}", f"b/{i}", "[Errno 28] No space left on device") for i in "xyz"]
            ),
            r"^demo: a/x and 2 more files cannot be copied to b/x: .*left on device\nFree space",
        ),
        (OSError(errno.EMFILE, "Too many open files"), OPEN_FILES),
        (OSError("unable to open file (errno = 24, 'Too many open files')"), OPEN_FILES),
    ],
)
def test_an_expected_error_is_one_message_and_its_traceback_is_in_a_log(error, message, caplog):
    def main(stage):
        raise error

    with pytest.raises(SystemExit, match="1"):
        run("demo", main)
    assert len(caplog.records) == 1
    assert re.search(message, caplog.records[0].getMessage())
    assert "Traceback" not in caplog.text
    assert "Traceback" in Path(".work/demo.error.log").read_text()


@pytest.mark.parametrize(
    ("soft", "hard", "remedy"),
    [
        (40, 40, "Use a shell that allows more"),
        (40, 256, "Raise it (`ulimit -n 256`)"),
        (256, resource.RLIM_INFINITY, "Raise it (`ulimit -n 4096`)"),
    ],
)
def test_the_hint_on_open_files_names_what_this_shell_may_do(soft, hard, remedy, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    assert f"{soft} open files (`ulimit -n`). {remedy}, or" in open_files_hint()


def test_a_full_disk_is_told_for_the_work_folder_and_for_the_output(monkeypatch, caplog):
    elsewhere = Path("/dev")  # another file system than the current folder's

    def main(stage):
        with stage.output("data/a", file=True) as path:
            path.touch()
        stage.targets.append(elsewhere / "b")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit):
        run("demo", main)
    text = caplog.records[-1].getMessage()
    assert re.search(rf"GB at {Path.cwd()}/\.work, \d+\.\d GB at {elsewhere};", text)
    assert "of its outputs, only data/a was published" in text


def test_a_traceback_that_cannot_be_written_is_shown_and_not_claimed_to_be_in_a_file(
    caplog, capsys
):
    Path(".work/demo.error.log").mkdir(parents=True)

    def main(stage):
        raise ValueError("the reason")

    with pytest.raises(SystemExit):
        run("demo", main)
    assert "could not be written" in caplog.text
    assert "traceback in" not in caplog.text
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_an_error_is_reported_does_not_replace_the_report(how, caplog, monkeypatch):
    def write(path):
        os.kill(os.getpid(), how)
        return "log"

    def main(stage):
        raise ValueError("the reason")

    monkeypatch.setattr(stage_module, "_write_traceback", write)
    with pytest.raises(SystemExit, match="1"):
        run("demo", main)
    assert caplog.messages == ["demo: the reason\n(log)"]


def test_an_unexpected_error_keeps_its_traceback():
    def main(stage):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        run("demo", main)


def test_termination_ends_a_stage_cleanly_and_publishes_nothing(repository):
    script = repository / "slow.py"
    script.write_text(
        "import time\n"
        "from pipeline.core.stage import run\n"
        "def main(stage):\n"
        "    with stage.output('data/slow') as folder:\n"
        "        (folder / 'a').touch()\n"
        "        print('started', flush=True)\n"
        "        time.sleep(60)\n"
        "run('slow', main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; nothing was published. Run it again." in stderr
    assert "Traceback" not in stderr
    assert not Path("data/slow").exists()


def test_run_times_are_those_of_the_last_run_with_the_parameters_as_they_are_now(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 17.0])
    monkeypatch.setattr(stage_module.time, "time", lambda: next(clock))
    main = lambda stage: stage.load("loss", LossParams)  # noqa: E731
    run("demo", main)
    assert runtimes() == {"demo": 5.0}
    edit_params("lambda: 0.005", "lambda: 0.5")
    assert runtimes() == {}
    run("demo", main)
    assert runtimes() == {"demo": 7.0}
    edit_params("lambda: 0.5", "lambda: 0.005")
    assert runtimes() == {"demo": 5.0}
    lines = Path(".work/runtime.jsonl").read_text().strip().splitlines()
    assert [json.loads(line)["seconds"] for line in lines] == [5.0, 7.0]
    assert time is stage_module.time


@pytest.mark.parametrize("cut", [b'{"stage": "demo", "sec', b"\xff\x00", b"3", b"{}"])
def test_a_run_time_that_was_cut_while_it_was_written_costs_no_other(cut):
    run("a", lambda stage: None)
    with Path(".work/runtime.jsonl").open("ab") as file:
        file.write(b"\n" + cut)
    run("b", lambda stage: None)
    assert set(runtimes()) == {"a", "b"}


def test_a_run_time_that_cannot_be_recorded_does_not_fail_the_stage(caplog):
    Path(".work/runtime.jsonl").mkdir(parents=True)
    run("demo", lambda stage: None)
    assert "run time is not recorded" in caplog.text


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], []),
        (["esc50-v2.0.0-full"], ["<task>"]),
        (["toy", "random"], ["<task>", "pretrain|random"]),
    ],
)
def test_arguments_are_returned_as_given(monkeypatch, given, wanted):
    monkeypatch.setattr(sys, "argv", ["stages/embed.py", *given])
    assert arguments(*wanted) == given


@pytest.mark.parametrize(
    "given",
    [[], ["toy"], ["toy", "random", "x"], ["../x", "random"], ["..", "random"], ["toy", "x"]],
)
def test_wrong_arguments_are_answered_with_the_usage(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["stages/embed.py", *given])
    usage = re.escape("Usage: python -m stages.embed <task> pretrain|random")
    with pytest.raises(SystemExit, match=usage):
        arguments("<task>", "pretrain|random")


def test_a_stage_without_arguments_takes_none(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stages/validate.py", "x"])
    with pytest.raises(
        SystemExit, match=r"Wrong arguments \['x'\]\. Usage: python -m stages\.validate$"
    ):
        arguments()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_stage_that_is_interrupted_while_it_imports_says_so(path, how, tmp_path):
    for name in ("torch", "pydantic", "requests"):
        (tmp_path / f"{name}.py").write_text(
            "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
        )
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{path.stem}"],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "importing\n"
    process.send_signal(how)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == ("Interrupted before the stage began; nothing was published. Run it again.\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            "ImportError('numpy says\\nOriginal error was: libblas.so: failed to map segment x')",
            r"not enough memory .*\(libblas.so: failed to map .*`ulimit -v` of 9\d\.\d GB",
        ),
        ("MemoryError()", "not enough memory to load a library"),
        ("OSError(24, 'Too many open files')", OPEN_FILES),
        ("ImportError('x.so: cannot open: Too many open files')", OPEN_FILES),
        ("ModuleNotFoundError('no module x')", "no module x\n.*requirements.lock: `make doctor`"),
    ],
)
def test_a_library_that_cannot_be_loaded_is_one_message(error, message, tmp_path):
    (tmp_path / "torch.py").write_text(f"raise {error}")
    process = subprocess.run(
        ["bash", "-c", f"ulimit -v 90000000; exec {sys.executable} -m stages.embed a b"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert re.search(message, process.stderr)
    assert "Traceback" not in process.stderr
