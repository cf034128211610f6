"""Scores: hear-eval-kit runs unmodified, and our summary of its result is clean."""

import ast
import copy
import json
import math
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from kit_in_process import write_embedded_task
from synthetic_hear import SMALL, write_checkpoint, write_event_task, write_fold_task

from pipeline.hear.api import model
from pipeline.hear.embed.embed import HearModule, write_embeddings
from pipeline.hear.score import scores
from pipeline.hear.score.params import GRID_SIZES, ScoreParams
from pipeline.hear.score.scores import run_heareval, summarize, summarize_seeds
from pipeline.hear.tasks.task import read_task

FAST = ScoreParams(engine="heareval", grid="fast", grid_points=2, seeds=1)
QUICK = ScoreParams(engine="heareval", grid="faster", grid_points=1, seeds=1)
RUNNER = """
import json, os, pathlib, sys
print("first line")
task = pathlib.Path(sys.argv[1])
seen = {"arguments": sys.argv[1:], "cwd": os.getcwd(), "files": sorted(os.listdir(task))}
seen["flag"] = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
(task / "prediction.log").write_text("")
"""
RESULT = "(task / 'test.predicted-scores.json').write_text(json.dumps(seen))\n"


@pytest.fixture
def fake_heareval(tmp_path, monkeypatch):
    """A function that replaces the code of `python -m heareval.predictions.runner`."""

    def install(code: str) -> None:
        package = tmp_path / "site" / "heareval" / "predictions"
        package.mkdir(parents=True)
        for folder in (package, package.parent):
            (folder / "__init__.py").write_text("")
        (package / "runner.py").write_text(RUNNER + code)
        (package / "task_predictions.py").write_text("seed_everything = None\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    return install


@pytest.fixture
def embeddings(tmp_path):
    rows = {"train": 60, "valid": 30, "test": 30}
    return write_embedded_task(tmp_path / "embeddings" / "toy-v1-full", rows)


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.mark.parametrize(
    ("device", "gpus"), [("auto", []), ("cpu", ["--gpus", "null"]), ("cuda", ["--gpus", "[0]"])]
)
def test_heareval_gets_its_own_options(fake_heareval, embeddings, scratch, device, gpus):
    fake_heareval(RESULT)
    seen = run_heareval(embeddings, scratch, FAST, device)
    options = ["--grid", "fast", "--grid-points", "2"]
    assert seen["arguments"] == ["toy-v1-full", *options, *gpus]
    kinds = ("embedding-dimensions.json", "embeddings.npy", "json", "target-labels.pkl")
    own = [f"{split}.{kind}" for split in ("train", "valid", "test") for kind in kinds]
    assert seen["files"] == sorted([*own, "labelvocabulary.csv", "task_metadata.json"])


def test_heareval_works_in_the_scratch_folder_and_leaves_the_embeddings_alone(
    fake_heareval, embeddings, scratch
):
    fake_heareval(RESULT)
    before = {path.name: path.read_bytes() for path in embeddings.iterdir()}
    seen = run_heareval(embeddings, scratch, FAST, "auto")
    assert seen["cwd"] == str(scratch / "42")
    assert {path.name: path.read_bytes() for path in embeddings.iterdir()} == before
    assert (scratch / "42" / "toy-v1-full" / "prediction.log").exists()


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("engine", ["heareval", "batched"])
@pytest.mark.parametrize("name", ["train.target-labels.pkl", "other.target-labels.pkl"])
def test_a_pickle_among_shared_embeddings_is_neither_read_nor_written(
    fake_heareval, embeddings, scratch, engine, name
):
    read_all = "import pickle\nfor path in task.glob('*.pkl'): pickle.loads(path.read_bytes())\n"
    fake_heareval(read_all + RESULT)
    content = pickle.dumps(Planted(scratch / "it-ran"))
    (embeddings / name).write_bytes(content)
    scores.score(embeddings, scratch, FAST.model_copy(update={"engine": engine}), "cpu")
    assert not (scratch / "it-ran").exists()
    assert (embeddings / name).read_bytes() == content


def test_a_pickle_in_place_of_the_labels_is_refused(embeddings, scratch):
    path = embeddings / "train.target-labels.json"
    path.write_bytes(pickle.dumps(Planted(scratch / "it-ran")))
    with pytest.raises(ValueError, match=r"train\.target-labels\.json"):
        scores.score(embeddings, scratch, FAST, "cpu")
    assert not (scratch / "it-ran").exists()


def test_only_heareval_may_load_checkpoints_unsafely(fake_heareval, embeddings, scratch):
    fake_heareval(RESULT)
    assert run_heareval(embeddings, scratch, FAST, "auto")["flag"] == "1"
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_failure_shows_the_end_of_the_log(fake_heareval, embeddings, scratch):
    fake_heareval("for i in range(30): print('line', i)\nraise SystemExit('no such column')\n")
    with pytest.raises(RuntimeError, match=r"failed on toy-v1-full with exit status 1") as error:
        run_heareval(embeddings, scratch, FAST, "auto")
    lines = str(error.value).splitlines()
    assert lines[1:] == [*(f"line {i}" for i in range(16, 30)), "no such column"]


def test_a_run_without_a_result_is_a_failure(fake_heareval, embeddings, scratch):
    fake_heareval("")
    with pytest.raises(RuntimeError, match=r"exit status 0; the end of its log:\nfirst line$"):
        run_heareval(embeddings, scratch, FAST, "auto")


def test_another_seed_goes_to_the_same_program(fake_heareval, embeddings, scratch):
    fake_heareval(RESULT + "runner = list\n")
    seen = run_heareval(embeddings, scratch, FAST, "auto", seed=43)
    assert seen["arguments"] == ["toy-v1-full", "--grid", "fast", "--grid-points", "2"]
    assert seen["cwd"] == str(scratch / "43")


HPARAMS = {
    "hidden_layers": 2,
    "lr": 0.0032,
    "norm_after_activation": False,
    "hidden_norm": "<class 'torch.nn.modules.batchnorm.BatchNorm1d'>",
    "initialization": "<function xavier_uniform_ at 0x7f2c10d61760>",
}


def split(score, **metrics):
    """One split of heareval's result, with d' and accuracy."""
    return {
        "test_loss": 1.25,
        "test_score": score,
        "test_top1_acc": score,
        "test_d_prime": 1.5,
        **{f"test_{name}": value for name, value in metrics.items()},
        "validation_score": 0.5,
        "epoch": 8,
        "time_in_min": 0.123,
    }


def result(**changes):
    """What heareval writes for a task with the three usual splits."""
    return {
        "test": split(0.11764705926179886),
        "hparams": HPARAMS,
        "postprocessing": [],
        "score_mode": "max",
        "embedding_path": "toy",
        **changes,
    }


def fold_result(**folds):
    """What heareval writes for a k-fold task; its means skip NaN."""
    aggregated = {}
    for key in next(iter(folds.values())):
        values = [f[key] for f in folds.values() if not math.isnan(f[key])]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
        aggregated |= {f"{key}_mean": mean, f"{key}_std": variance**0.5}
    content = result(aggregated_scores=aggregated)
    del content["test"]
    return folds | content


def summary_of(raw, metric="top1_acc"):
    summary = summarize(raw, "toy", "pretrained", metric, FAST)
    json.dumps(summary, allow_nan=False)
    return summary


def test_the_summary_of_a_result():
    assert summary_of(result(postprocessing=[["median_filter_ms", 150]])) == {
        "task": "toy",
        "model": "pretrained",
        "metric": "top1_acc",
        "score": 0.117647,
        "std": None,
        "metrics": {"top1_acc": 0.117647, "d_prime": 1.5},
        "splits": {
            "test": {
                "score": 0.117647,
                "loss": 1.25,
                "validation_score": 0.5,
                "epoch": 8,
                "top1_acc": 0.117647,
                "d_prime": 1.5,
            }
        },
        "grid": "fast",
        "grid_points": 2,
        "hparams": {
            "hidden_layers": 2,
            "lr": 0.0032,
            "norm_after_activation": False,
            "hidden_norm": "BatchNorm1d",
            "initialization": "xavier_uniform_",
        },
        "postprocessing": {"median_filter_ms": 150},
        "notes": {},
    }


def test_times_and_addresses_do_not_change_the_summary():
    other = copy.deepcopy(result())
    other["test"]["time_in_min"] = 9.0
    other["hparams"]["initialization"] = "<function xavier_uniform_ at 0x7fffffffffff>"
    assert summary_of(other) == summary_of(result())


@pytest.mark.parametrize(
    ("metric", "value", "note"),
    [
        ("d_prime", math.inf, "inf: a class is separated perfectly or absent"),
        ("aucroc", math.nan, "nan: a class is absent"),
        ("event_onset_200ms_fms", math.nan, "nan: no event is predicted, or there is none"),
        ("other", -math.inf, "-inf"),
    ],
)
def test_numbers_that_are_not_finite_are_null_and_noted(metric, value, note):
    summary = summary_of(result(test=split(0.5, **{metric: value})))
    assert summary["metrics"][metric] is None
    assert summary["splits"]["test"][metric] is None
    assert summary["notes"] == {f"metrics.{metric}": note, f"splits.test.{metric}": note}
    assert summary["score"] == 0.5


def test_a_score_that_is_not_finite_is_null():
    name = "event_onset_200ms_fms"
    summary = summary_of(result(test=split(math.nan, **{name: math.nan})), metric=name)
    assert summary["score"] is None
    assert summary["notes"]["score"] == "nan: no event is predicted, or there is none"


def test_folds_give_mean_and_standard_deviation():
    raw = fold_result(fold00=split(0.5), fold01=split(0.75), fold02=split(1.0, d_prime=3.0))
    summary = summary_of(raw)
    assert (summary["score"], summary["std"]) == (0.75, 0.25)
    assert summary["metrics"] == {"top1_acc": 0.75, "d_prime": 2.0}
    assert [f["score"] for f in summary["splits"].values()] == [0.5, 0.75, 1.0]
    assert summary["notes"] == {}


def test_a_mean_over_only_some_folds_is_null_and_noted():
    raw = fold_result(fold00=split(0.5), fold01=split(math.nan), fold02=split(1.0))
    summary = summary_of(raw)
    assert summary["score"] is None
    assert summary["std"] is None
    assert summary["metrics"] == {"top1_acc": None, "d_prime": 1.5}
    assert summary["notes"]["score"] == "heareval gives 0.75, a mean without fold01"
    assert summary["notes"]["std"] == "heareval gives 0.353553, without fold01"


def seeds_of(*raws, engine="batched"):
    params = FAST.model_copy(update={"seeds": len(raws), "engine": engine})
    summary = summarize_seeds(raws, "toy", "pretrained", "top1_acc", params)
    json.dumps(summary, allow_nan=False)
    return summary


def test_one_seed_leaves_the_summary_as_it_is():
    summary = seeds_of(result(), engine="heareval")
    plain = summary_of(result())
    assert plain.items() <= summary.items()
    assert (summary["engine"], summary["seeds"], summary["seeds_std"]) == ("heareval", 1, None)
    (only,) = summary["per_seed"]
    assert (only["seed"], only["score"]) == (42, plain["score"])


def test_several_seeds_give_mean_and_standard_deviation():
    other = {**HPARAMS, "lr": 0.001}
    raws = (result(test=split(0.5)), result(test=split(0.75, d_prime=3.5), hparams=other))
    summary = seeds_of(*raws, result(test=split(1.0)))
    assert (summary["score"], summary["seeds_std"]) == (0.75, 0.25)
    assert summary["metrics"] == {"top1_acc": 0.75, "d_prime": 2.16667}
    assert summary["std"] is None
    assert [each["seed"] for each in summary["per_seed"]] == [42, 43, 44]
    assert [each["score"] for each in summary["per_seed"]] == [0.5, 0.75, 1.0]
    assert [each["hparams"]["lr"] for each in summary["per_seed"]] == [0.0032, 0.001, 0.0032]


def test_the_standard_deviation_over_folds_is_averaged_over_the_seeds():
    narrow = fold_result(fold00=split(0.5), fold01=split(0.5), fold02=split(0.5))
    wide = fold_result(fold00=split(0.25), fold01=split(0.5), fold02=split(0.75))
    summary = seeds_of(narrow, wide)
    assert (summary["score"], summary["std"], summary["seeds_std"]) == (0.5, 0.125, 0.0)


def test_if_a_seed_has_no_score_there_is_no_mean():
    summary = seeds_of(result(test=split(0.5)), result(test=split(math.nan)))
    assert summary["score"] is None
    assert summary["seeds_std"] is None
    assert summary["notes"]["score"] == summary["per_seed"][1]["notes"]["score"] == "nan"


def test_both_engines_give_results_of_one_shape(tmp_path, monkeypatch):
    own = {"hidden_dim": [8], "max_epochs": [3]}
    folder = write_embedded_task(
        tmp_path / "toy",
        {f"fold{i:02d}": 30 for i in range(3)},
        evaluation_params={"task_specific_param_grid": own},
    )
    params = ScoreParams(engine="batched", grid="default", grid_points=2, seeds=2)
    batched = scores.score(folder, tmp_path, params, "cpu")
    assert batched[0]["aggregated_scores"] != batched[1]["aggregated_scores"]
    summary = summarize_seeds(batched, "toy", "random", "top1_acc", params)
    assert list(summary["splits"]) == ["fold00", "fold01", "fold02"]
    assert summary["hparams"]["hidden_dim"] == 8
    assert 0 <= summary["score"] <= 1
    calls = []
    monkeypatch.setattr(scores, "run_heareval", lambda *arguments: calls.append(arguments))
    heareval = params.model_copy(update={"engine": "heareval"})
    scores.score(folder, tmp_path, heareval, "cpu")
    assert [call[-1] for call in calls] == [42, 43]


@pytest.mark.parametrize("engine", ["heareval", "batched"])
def test_no_engine_gets_embeddings_that_are_not_finite(tmp_path, engine):
    folder = write_embedded_task(tmp_path / "toy", {"train": 30, "valid": 9, "test": 9})
    path = folder / "valid.embeddings.npy"
    path.write_bytes(np.full(9 * 6, np.nan, np.float32).tobytes())
    params = ScoreParams(engine=engine, grid="default", grid_points=2, seeds=1)
    with pytest.raises(ValueError, match=r"valid.embeddings.npy, row 0 .*nan"):
        scores.score(folder, tmp_path, params, "cpu")


def test_the_sizes_of_the_grids_are_those_of_hear_eval_kit():
    folder = Path(find_spec("heareval").submodule_search_locations[0])
    tree = ast.parse((folder / "predictions" / "task_predictions.py").read_text())
    grids = {}  # name: choices per setting; PARAM_GRID is assigned, the others update a copy
    for node in tree.body:
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign) and isinstance(value, ast.Dict):
            name, update = node.targets[0].id, value
        elif isinstance(value, ast.Call) and ast.unparse(value.func).endswith(".update"):
            name, update = value.func.value.id, value.args[0]
        else:
            continue
        if name.endswith("PARAM_GRID") and "TASK" not in name:
            pairs = zip(update.keys, update.values, strict=True)
            own = {key.value: len(choices.elts) for key, choices in pairs}
            grids[name] = grids.get("PARAM_GRID", {}) | own
    assert {
        "default": math.prod(grids["PARAM_GRID"].values()),
        "fast": math.prod(grids["FAST_PARAM_GRID"].values()),
        "faster": math.prod(grids["FASTER_PARAM_GRID"].values()),
    } == GRID_SIZES


POSTPROCESSING = {"median_filter_ms": [50], "min_duration": [0]}


@pytest.fixture(scope="module")
def heareval_results(tmp_path_factory):
    """Result and summary of heareval itself for a k-fold and an event task, run side by side."""
    folder = tmp_path_factory.mktemp("heareval")
    write_checkpoint(folder / "audiontt", "audiontt", **SMALL)
    module = HearModule(model, model.load_model(str(folder / "audiontt")))
    grid = {"task_specific_param_grid": {"max_epochs": [2]}}  # most of the time is its imports
    write_fold_task(folder / "folds", clips=6, evaluation_params=grid)
    event = grid | {"event_postprocessing_grid": POSTPROCESSING}
    write_event_task(folder / "event", evaluation_params=event)

    tasks = [read_task(folder / name) for name in ("folds", "event")]
    for task in tasks:
        (folder / "embeddings" / task.name).mkdir(parents=True)
        (folder / "scratch" / task.name).mkdir(parents=True)
        write_embeddings(task, module, folder / "embeddings" / task.name)

    def score(task):
        scratch = folder / "scratch" / task.name
        raw = run_heareval(folder / "embeddings" / task.name, scratch, QUICK, "cpu")
        summary = summarize(raw, task.name, "random", task.metadata.evaluation[0], QUICK)
        json.dumps(summary, allow_nan=False)
        return raw, summary

    with ThreadPoolExecutor() as threads:
        return dict(zip(("folds", "event"), threads.map(score, tasks), strict=True))


@pytest.mark.slow
def test_heareval_scores_our_embeddings_of_a_fold_task(heareval_results):
    raw, summary = heareval_results["folds"]
    assert list(summary["splits"]) == ["fold00", "fold01", "fold02"]
    assert summary["score"] == pytest.approx(raw["aggregated_scores"]["test_score_mean"], rel=1e-5)
    assert summary["std"] == pytest.approx(raw["aggregated_scores"]["test_score_std"], rel=1e-5)
    assert 0 <= summary["score"] <= 1
    assert summary["hparams"]["optim"] == "Adam"


@pytest.mark.slow
def test_heareval_scores_our_embeddings_of_an_event_task(heareval_results):
    raw, summary = heareval_results["event"]
    assert summary["postprocessing"] == {"median_filter_ms": 50, "min_duration": 0}
    expected = raw["test"]["test_segment_1s_er"]
    assert math.isfinite(expected)
    assert summary["metrics"]["segment_1s_er"] == pytest.approx(expected, rel=1e-5)
    assert {"event_onset_200ms_fms_precision", "event_onset_200ms_fms_recall"} <= set(
        summary["metrics"]
    )
