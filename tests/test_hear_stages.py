"""Stages hear_tasks, embed and score: what they publish and their error messages."""

import json
import re
import shutil
import signal
from functools import partial
from types import ModuleType

import pytest
import torch
from ruamel.yaml import YAML
from synthetic_hear import MEAN, ROOT, SMALL, write_checkpoint, write_scene_task

import stages.baselines
import stages.embed
import stages.hear_tasks
import stages.score
from pipeline.core.stage import run
from pipeline.hear import api
from pipeline.hear.embed.embed import HearModule
from pipeline.hear.score import scores

TASK = "toy-v1-small"
RESULT = {
    "test": {"test_score": 0.5, "test_loss": 1.0, "validation_score": 0.75, "epoch": 2},
    "hparams": {"lr": 0.001},
    "postprocessing": [],
}


@pytest.fixture(autouse=True)
def _leave_signals_as_they_were():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A folder with the committed parameters, a task and two checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_scene_task(tmp_path / "data/sample/tasks" / TASK)
    for model in ("pretrained", "random"):
        write_checkpoint(tmp_path / "data" / model, "audiontt", **SMALL)
    return tmp_path


@pytest.fixture
def _heareval(repository):
    """hear-eval-kit as the engine."""
    params = repository / "params.yaml"
    params.write_text(re.sub(r"engine: \S+", "engine: heareval", params.read_text()))


def publish_task(name=TASK):
    run("hear_tasks", partial(stages.hear_tasks.main, name=name), name)


def embed(model="random"):
    main = partial(stages.embed.main, name=TASK, model_name=model)
    run("embed", main, TASK, model)


def score(model="random"):
    main = partial(stages.score.main, name=TASK, model_name=model)
    run("score", main, TASK, model)


@pytest.mark.usefixtures("_heareval")
def test_each_model_ends_in_one_score_file(repository, monkeypatch):
    publish_task()
    monkeypatch.setattr(scores, "run_heareval", lambda *_: RESULT)
    for model in ("pretrained", "random"):
        embed(model)
        score(model)
        summary = json.loads((repository / f"reports/scores/{model}/{TASK}.json").read_text())
        assert (summary["task"], summary["model"], summary["metric"]) == (TASK, model, "top1_acc")
        assert summary["score"] == 0.5
    assert len(list((repository / "data/embeddings/pretrained" / TASK).iterdir())) == 17


def test_the_batched_engine_scores_what_was_embedded(repository):
    params = repository / "params.yaml"
    text = re.sub(r"engine: \S+", "engine: batched", params.read_text())
    params.write_text(re.sub(r"seeds: \S+", "seeds: 2", text))
    publish_task()
    embed()
    score()
    summary = json.loads((repository / f"reports/scores/random/{TASK}.json").read_text())
    assert (summary["engine"], summary["seeds"]) == ("batched", 2)
    assert list(summary["splits"]) == ["test"]
    assert 0 <= summary["score"] <= 1


def set_params(repository, **values):
    """Change values of section `hear`."""
    path = repository / "params.yaml"
    content = YAML(typ="safe", pure=True).load(path)
    content["hear"] |= values
    YAML(typ="safe", pure=True).dump(content, path)


def test_embed_passes_its_parameters_to_the_model(repository, monkeypatch):
    publish_task()
    options = {}

    def load_model(path, **arguments):
        options.update(arguments, path=path)
        return original(path, **arguments)

    original = api.load_model
    monkeypatch.setattr(api, "load_model", load_model)
    changes = {"window_ms": [160.0, 500.0], "hop_ms": 20.0, "layers": "concat", "mel_mean": True}
    changes |= {"mode": "ours", "normalization": "task", "edges": "cut"}
    set_params(repository, **changes)
    embed("pretrained")
    assert options.pop("path") == "data/pretrained"
    mean, std = options.pop("statistics")
    assert options == changes
    assert -15.95 < mean < 0 < std


def test_reference_mode_gives_the_same_bytes_twice(repository):
    """Its dropout is seeded."""
    publish_task()
    set_params(repository, mode="reference", normalization="reference", edges="cut")
    files = []
    for _ in range(2):
        embed("pretrained")
        torch.rand(1)
        path = repository / "data/embeddings/pretrained" / TASK / "test.embeddings.npy"
        files.append(path.read_bytes())
    assert files[0] == files[1]


@pytest.mark.usefixtures("_heareval")
def test_a_baseline_is_described_embedded_and_scored(repository, monkeypatch):
    publish_task()
    set_params(repository, models=["pretrained", "mel"])
    run("baselines", stages.baselines.main)
    monkeypatch.setattr(scores, "run_heareval", lambda *_: RESULT)
    embed("mel")
    score("mel")
    folder = repository / "data/embeddings/mel" / TASK
    assert json.loads((folder / "test.embedding-dimensions.json").read_text()) == [4, 128]
    assert json.loads((repository / f"reports/scores/mel/{TASK}.json").read_text())["score"] == 0.5


def test_a_baseline_that_was_not_requested_is_not_embedded(repository, caplog):
    publish_task()
    run("baselines", stages.baselines.main)
    text = message(caplog, embed, "mel")
    assert "mel was not in hear.models when it was written. Add it there" in text


@pytest.mark.usefixtures("_heareval")
def test_scratch_files_are_removed(repository, monkeypatch):
    def leave_a_file(embeddings, scratch, *_):
        (scratch / "large.ckpt").write_text("")
        return RESULT

    publish_task()
    embed()
    monkeypatch.setattr(scores, "run_heareval", leave_a_file)
    score()
    assert not list((repository / ".work").rglob("*.ckpt"))


def message(caplog, stage, *arguments) -> str:
    """The message of a failing stage, which shows no traceback."""
    with pytest.raises(SystemExit) as error:
        stage(*arguments)
    assert error.value.code == 1
    assert "Traceback" not in caplog.text
    return caplog.records[-1].getMessage()


def test_an_unknown_task_is_answered_with_those_there_are(caplog):
    assert f"'esc50' is not a task in data/sample/tasks; available: {TASK}" in message(
        caplog, publish_task, "esc50"
    )


def test_an_invalid_task_publishes_nothing(repository, caplog):
    (repository / "data/sample/tasks" / TASK / "16000/test/2.wav").write_bytes(b"")
    text = message(caplog, publish_task)
    assert f"data/sample/tasks/{TASK}/16000/test/2.wav: the file is empty" in text
    assert not (repository / "data/hear").exists()


@pytest.mark.parametrize(
    "rate", [22_050, 32_000]
)  # at the first, the window is not a whole number of hops
def test_a_checkpoint_of_another_sample_rate_is_refused(repository, caplog, rate):
    publish_task()
    path = repository / "data/random/encoder.json"
    settings = json.loads(path.read_text())
    assert settings["mean"] == MEAN
    settings["logmel"]["sample_rate"] = rate
    path.write_text(json.dumps(settings))
    text = message(caplog, embed)
    assert f"data/random takes audio of {rate} Hz" in text
    assert f"data/hear/{TASK} has 16000 Hz" in text


def test_a_module_of_another_sample_rate_is_refused_with_the_options(monkeypatch, caplog):
    publish_task()
    api = ModuleType("toy48k")
    model = torch.nn.Identity()
    model.sample_rate = 48_000
    monkeypatch.setattr(
        stages.embed.registry, "load_hear_module", lambda *_: HearModule(api, model)
    )
    text = message(caplog, embed, "module")
    assert "data/module (toy48k) takes audio of 48000 Hz only" in text
    assert f"data/hear/{TASK} has 16000 Hz" in text
    assert "Set logmel.sample_rate to 48000" in text
    assert "dvc repro" not in text


@pytest.mark.usefixtures("_heareval")
def test_a_failing_heareval_is_one_message(repository, caplog, monkeypatch):
    publish_task()
    embed()
    monkeypatch.setattr(scores.sys, "executable", "false")
    text = message(caplog, score)
    assert f"hear-eval-kit failed on {TASK} with exit status 1" in text
    assert not (repository / "reports").exists()
