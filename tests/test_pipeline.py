"""The whole pipeline as a user runs it: DVC, a tiny corpus cut, the smallest networks.

One run is made for all tests, which work in a clone of it that shares its cache.
"""

import json
import re

import pytest
from dvc_runs import commit, copy_repository, dvc, git, set_params, stages_run

TASK = "sonicpi_kind-v1-small"
TINY = {
    "download.clips_per_shard": 16,
    "encoders.audiontt.channels": 4,
    "encoders.audiontt.hidden_dim": 16,
    "encoders.audiontt.embed_dim": 96,
    "encoders.vitc.patch_frames": 16,
    "projector.hidden_dim": 32,
    "projector.out_dim": 16,
    "pretrain.epochs": 2,
    "pretrain.batch_size": 8,
    "hear.tasks": [TASK],
    "score.grid": "faster",
    "score.grid_points": 1,
}
SEGMENTS = 40

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository with the working tree's files, tiny parameters and one finished run."""
    folder = tmp_path_factory.mktemp("pipeline") / "repository"
    copy_repository(folder)
    segments = folder / "data/sample/segments.csv"
    rows = segments.read_text().splitlines()
    header = [row for row in rows if row.startswith("#")]
    kept = [row for row in rows if not row.startswith("#")][::6][:SEGMENTS]
    segments.write_text("\n".join([*header, *kept]) + "\n")
    set_params(folder, **TINY)
    git(folder, "init", "-q")
    commit(folder, "tiny")
    output = dvc(folder, "repro")
    assert f"score@{TASK}-pretrained" in stages_run(output)
    commit(folder, "run")
    return folder


@pytest.fixture(scope="module")
def shared_clone(finished):
    """A clone of the finished run, its outputs checked out from the shared cache."""
    folder = finished.parent / "clone"
    git(finished.parent, "clone", "-q", finished, folder)
    (folder / ".dvc/config.local").write_text(f"[cache]\n    dir = {finished / '.dvc/cache'}\n")
    dvc(folder, "checkout")
    return folder


@pytest.fixture
def clone(shared_clone):
    """The clone with everything as the run has left it, whatever the test before has done."""
    yield shared_clone
    git(shared_clone, "reset", "-q", "--hard")
    dvc(shared_clone, "checkout", "--force")


def test_the_run_ends_in_scores_a_page_and_a_ledger_of_every_segment(finished):
    metrics = json.loads((finished / "reports/metrics.json").read_text())
    assert 0 <= metrics["score"]["mean"] <= 1
    assert set(metrics["score"]) == {"mean", "sonicpi_kind"}
    for model in ("pretrained", "random"):
        score = json.loads((finished / f"reports/scores/{model}/{TASK}.json").read_text())
        assert (score["model"], score["grid"], score["grid_points"]) == (model, "faster", 1)
    page = (finished / "reports/index.html").read_text()
    assert "sonicpi_kind" in page
    ledger = (finished / "data/ledger.csv").read_text().splitlines()
    assert len(ledger) == 1 + SEGMENTS


def test_a_second_run_does_nothing(clone):
    output = dvc(clone, "repro")
    assert stages_run(output) == []
    assert "Data and pipelines are up to date" in output


def test_deleting_the_page_re_runs_only_the_report(clone):
    (clone / "reports/index.html").unlink()
    output = dvc(clone, "repro")
    touched = set(stages_run(output)) | set(re.findall(r"Stage '([^']+)' is cached", output))
    assert touched == {"report"}
    assert (clone / "reports/index.html").exists()


def test_settings_of_the_other_encoder_are_no_dependency(clone):
    set_params(clone, encoders__vitc__optimizer__weight_decay=0.5)
    assert stages_run(dvc(clone, "repro")) == ["validate"]


WRONG = [
    {"encoder=vit_c": "encoder = 'vit_c': must be one of audiontt, vit, vitc"},
    {
        "+typo=1": "typo: unknown key",
        "pretrain.epochs=abc": "pretrain.epochs = 'abc'",
        "loss.lambda='1e-5'": "loss.lambda = '1e-5'",
    },
    {"hear.tasks=[esc60]": "esc60"},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_stop_in_validate_and_keep_what_is_there(clone, wrong):
    changes = [word for change in wrong for word in ("-S", change)]
    output = dvc(clone, "exp", "run", *changes, fails=True)
    assert stages_run(output) == ["validate"], output
    for message in wrong.values():
        assert message in output
    assert "Traceback" not in output
    assert (clone / "data/pretrained/encoder.safetensors").exists()


def test_params_edited_during_pretraining_are_noticed_and_nothing_is_published(clone):
    set_params(clone, pretrain__epochs=3)
    script = clone / "pipeline/pretrain/outputs.py"
    edit = (
        "    path = Path('params.yaml')\n"
        "    path.write_text(path.read_text().replace('epochs: 3', 'epochs: 4'))\n"
    )
    text = script.read_text()
    marker = "    trainer.run(states, partial(writer.observe, trainer))\n"
    assert marker in text
    script.write_text(text.replace(marker, marker + edit))
    output = dvc(clone, "repro", "pretrain", fails=True)
    assert "changed" in output
    assert "Nothing was published" in output
    assert not (clone / "data/pretrained").exists()


def test_an_experiment_with_the_other_encoder_starts_at_pretraining(clone):
    targets = [f"embed@{TASK}-pretrained", f"probe@{TASK}"]
    changed = ["-S", "encoder=vitc", "-n", "with-vitc"]
    output = dvc(clone, "exp", "run", "--temp", *changed, *targets)
    stages = {name.split("@")[0] for name in stages_run(output)}
    assert stages == {"validate", "pretrain", "embed", "probe"}
    table = json.loads(dvc(clone, "exp", "show", "--json"))
    (experiments,) = [entry["experiments"] for entry in table if entry["experiments"]]
    experiment = experiments[0]["revs"][0]["data"]
    assert experiment["params"]["params.yaml"]["data"]["encoder"] == "vitc"
    assert "mean" in experiment["metrics"]["reports/metrics.json"]["data"]["score"]
    dvc(clone, "exp", "apply", "with-vitc")
    left = json.loads(dvc(clone, "status", "--json"))
    assert set(left) == {f"embed@{TASK}-random", f"score@{TASK}-pretrained", "report"}


def test_a_clone_without_audio_pulls_features_only(finished, tmp_path):
    remote, folder = tmp_path / "remote", tmp_path / "clone"
    git(finished.parent, "clone", "-q", finished, folder)
    dvc(finished, "remote", "add", "-f", "--local", "-d", "shared", remote)
    dvc(finished, "push")
    dvc(folder, "remote", "add", "--local", "-d", "shared", remote)
    assert stages_run(dvc(folder, "repro", "--pull", "--allow-missing")) == []
    set_params(folder, pretrain__epochs=1)
    output = dvc(folder, "repro", "--pull", "--allow-missing", "pretrain")
    assert stages_run(output) == ["validate", "pretrain"]
    assert (folder / "data/logmel/00000.h5").exists()
    assert not (folder / "data/clips").exists()
    assert not (folder / "data/audio16k").exists()
