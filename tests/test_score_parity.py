"""The batched engine gives hear-eval-kit's scores if both draw the same random numbers.

hear-eval-kit runs unmodified in this process on small tasks; the engine replays its initial weights
and dropout masks. In float64 all validations, epochs, scores and logits are equal, and any single
planted difference is detected.
"""

import contextlib
import io
import math
import random
import sys
from functools import partial

import numpy as np
import pytest
import torch
from kit_in_process import Replay, run_kit, write_embedded_task

from pipeline.hear.score import data, engine, ensemble, fitting, heareval_seed, protocol
from pipeline.hear.score.data import read_data
from pipeline.hear.score.events import THRESHOLD, best_postprocessing, find_events, group_by_file
from pipeline.hear.score.fitting import Trial
from pipeline.hear.score.params import ScoreParams
from pipeline.hear.score.protocol import Fold, best, hyperparameter_grid, postprocessings
from pipeline.hear.tasks.task import EvaluationParams, Metadata, read_task

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning and of metrics of absent classes

CPU = torch.device("cpu")
OWN = {"hidden_dim": [16], "batch_size": [32], "max_epochs": [18], "patience": [3]}
USUAL = {"train": 90, "valid": 40, "test": 40}
FOLDS = {"fold01": 60, "fold00": 66, "fold02": 33, "fold03": 36}  # epochs of 3 or 4 batches
FILES = {"train": 160, "valid": 80, "test": 80}
BY_LOSS = {
    "use_scoring_for_early_stopping": False,
    "evaluation_params": {
        "task_specific_param_grid": {**OWN, "check_val_every_n_epoch": [1], "max_epochs": [4]},
        "event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]},
    },
}
LARGE = {"hidden_dim": [32], "batch_size": [256], "max_epochs": [9], "check_val_every_n_epoch": [3]}
LARGE_TASK = {
    "evaluation": ["mAP", "top1_acc", "aucroc"],
    "evaluation_params": {"task_specific_param_grid": LARGE},
}
LARGE_USUAL = {"train": 700, "valid": 600, "test": 600}
LARGE_FOLDS = {f"fold{i:02d}": 600 for i in range(3)}
LARGE_EVENTS = {
    "noise": 0.3,
    "evaluation_params": {"task_specific_param_grid": {**LARGE, "max_epochs": [15]}},
}

TASKS = {  # rows, kind, grid, metadata
    "multiclass": (USUAL, "multiclass", "default", {}),
    "multilabel": (USUAL, "multilabel", "default", {}),
    "k-fold": (FOLDS, "multiclass", "default", {}),
    "event": (FILES, "event", "default", {}),
    "event by loss, k-fold": (dict.fromkeys(FOLDS, 80), "event", "default", BY_LOSS),
    "faster": (USUAL, "multiclass", "faster", {"evaluation_params": {}}),
    "float32 multiclass": (LARGE_USUAL, "multiclass", "default", LARGE_TASK),
    "float32 multilabel": (LARGE_USUAL, "multilabel", "default", LARGE_TASK),
    "float32 k-fold": (LARGE_FOLDS, "multiclass", "default", LARGE_TASK),
    "float32 event": ({"train": 800, "valid": 400, "test": 400}, "event", "default", LARGE_EVENTS),
}
EXACT = [name for name in TASKS if not name.startswith("float32")]


@pytest.fixture(scope="module")
def kit_of(tmp_path_factory):
    """A function that returns a task's folder, grid and hear-eval-kit's run, which happens once."""
    runs = {}

    def run(name):
        if name not in runs:
            rows, kind, grid, metadata = TASKS[name]
            scratch = tmp_path_factory.mktemp("kit")
            metadata = {"evaluation_params": {"task_specific_param_grid": OWN}} | metadata
            write_embedded_task(scratch / "toy", rows, kind, **metadata)
            precision = 64 if name in EXACT else 32
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
                patch.chdir(scratch)  # it leaves its logs there
                kit = run_kit(patch, scratch / "toy", grid, 2, precision)
            runs[name] = scratch / "toy", grid, kit
        return runs[name]

    return run


def compare(kit_of, name, at_once=0):
    """Assert that the engine equals hear-eval-kit."""
    folder, grid, kit = kit_of(name)
    exact = name in EXACT
    params = ScoreParams(engine="batched", grid=grid, grid_points=2, seeds=1)
    dtype = torch.float64 if exact else torch.float32
    result = engine.evaluate(read_data(folder), params, CPU, Replay(kit), dtype, at_once)
    raw, expected = result.raw, kit.raw
    tolerance = 1e-6 if exact else 2e-3  # hear-eval-kit logs float32
    for key, value in raw["hparams"].items():
        assert str(value) in str(expected["hparams"][key])
    assert [list(pair) for pair in raw["postprocessing"]] == expected["postprocessing"]
    assert raw["score_mode"] == expected["score_mode"]
    assert len(result.trials) == len(kit.trials)
    for ours, theirs in zip(result.trials, kit.trials, strict=True):
        assert len(ours.history) == len(theirs.history)
        np.testing.assert_allclose(ours.history, theirs.history, rtol=0, atol=tolerance)
    for split, logits in kit.logits.items():
        theirs = {key: expected[split][key] for key in expected[split] if key != "time_in_min"}
        assert list(raw[split]) == list(theirs)
        if exact:
            assert raw[split]["epoch"] == theirs["epoch"]
            torch.testing.assert_close(result.logits[split], logits, rtol=0, atol=1e-7)
        for key in raw[split].keys() - {"epoch"}:
            # Rounding, which depends on the processor, may flip three of 600 clips.
            flips = 5.1e-3 if key == "test_top1_acc" and not exact else tolerance
            assert raw[split][key] == pytest.approx(theirs[key], abs=flips, nan_ok=True), key
    assert ("aggregated_scores" in raw) == ("aggregated_scores" in expected)
    for key, value in raw.get("aggregated_scores", {}).items():
        if exact or not key.startswith("epoch"):
            theirs = expected["aggregated_scores"][key]
            assert value == pytest.approx(theirs, abs=10 * tolerance, nan_ok=True), key
    return result


@pytest.mark.parametrize("at_once", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_scores_equal_hear_eval_kits(kit_of, name, at_once):
    compare(kit_of, name, at_once)


def test_the_tasks_cover_patience_max_epochs_and_uneven_epochs(kit_of):
    trials = {name: kit_of(name)[2].trials for name in EXACT}
    validations = 18 // 3
    assert any(len(trial.history) < validations for trial in trials["multiclass"])  # patience
    assert any(len(trial.history) == validations for trial in trials["multiclass"])  # max_epochs
    assert len({trial.masks[0].shape for trial in trials["k-fold"]}) == 1
    assert len({len(trial.masks) / len(trial.history) for trial in trials["k-fold"]}) > 1


def shuffle_rows(patch):
    select = data.TaskData.select

    def shuffled(self, names):
        return np.random.default_rng(0).permutation(select(self, names))

    patch.setattr(data.TaskData, "select", shuffled)


def set_default(key, value, patch):
    patch.setattr(protocol, "DEFAULT", {**protocol.DEFAULT, key: [value]})


def set_own(key, value, patch):
    """Change a hyperparameter that the tasks of this file set themselves."""

    def changed(grid, points, metadata):
        return [{**hparams, key: value} for hparams in hyperparameter_grid(grid, points, metadata)]

    patch.setattr(engine, "hyperparameter_grid", changed)


def rotate_folds_backwards(patch):
    def rotated(metadata):
        folds = sorted(metadata.splits)
        pairs = zip(folds, [folds[-1], *folds[:-1]], strict=True)
        return [Fold(tuple(f for f in folds if f not in p), valid=p[1], test=p[0]) for p in pairs]

    patch.setattr(engine, "folds", rotated)


def prefer_the_later_of_ties(patch):
    patch.setattr(fitting, "is_better", lambda v, b, up: v >= b if up else v <= b)


def drop_the_last_batch(patch):
    epoch_batches = fitting.epoch_batches
    patch.setattr(fitting, "epoch_batches", lambda *arguments: epoch_batches(*arguments)[:-1])


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("multiclass", shuffle_rows),
        ("multiclass", partial(set_default, "dropout", 0.2)),
        ("multiclass", partial(set_own, "patience", 2)),
        ("multiclass", partial(set_own, "check_val_every_n_epoch", 2)),
        ("multiclass", partial(set_own, "lr", 0.00101)),
        ("multiclass", prefer_the_later_of_ties),
        ("multiclass", drop_the_last_batch),
        ("multiclass", lambda patch: patch.setattr(ensemble, "MOMENTUM", 0.11)),
        ("multilabel", shuffle_rows),
        ("k-fold", rotate_folds_backwards),
        ("k-fold", shuffle_rows),
        ("event", shuffle_rows),
        ("event", partial(set_default, "dropout", 0.2)),
        ("float32 multiclass", shuffle_rows),
        ("float32 multiclass", partial(set_default, "dropout", 0.2)),
        ("float32 k-fold", rotate_folds_backwards),
    ],
)
def test_a_planted_difference_is_detected(kit_of, monkeypatch, name, plant):
    kit_of(name)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        compare(kit_of, name)


def kit_module():
    from heareval.predictions import task_predictions

    return task_predictions


def as_text(value):
    return getattr(value, "__name__", value)


@pytest.mark.parametrize("task", ["toy", "dcase2016_task2"])
@pytest.mark.parametrize("grid", ["default", "fast", "faster"])
def test_the_grids_and_their_order_are_hear_eval_kits(grid, task):
    kit = kit_module()
    names = {"default": "PARAM_GRID", "fast": "FAST_PARAM_GRID", "faster": "FASTER_PARAM_GRID"}
    choices = getattr(kit, names[grid]) | kit.TASK_SPECIFIC_PARAM_GRID.get(task, {})
    expected = list(kit.ParameterGrid(choices))
    random.Random(42).shuffle(expected)
    metadata = Metadata.model_construct(task_name=task, evaluation_params=no_params())
    result = hyperparameter_grid(grid, 100, metadata)
    assert result == [{k: as_text(v) for k, v in hparams.items()} for hparams in expected]


def no_params():
    return EvaluationParams()


def test_the_postprocessings_are_hear_eval_kits():
    kit = kit_module()
    metadata = Metadata.model_construct(evaluation_params=no_params())
    assert postprocessings(metadata) == list(kit.ParameterGrid(kit.EVENT_POSTPROCESSING_GRID))


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_the_folds_rotate_as_in_hear_eval_kit(folds):
    names = [f"fold{i:02d}" for i in range(folds)]
    random.Random(0).shuffle(names)
    metadata = Metadata.model_construct(split_mode="new_split_kfold", splits=names)
    result = [
        {"train": list(fold.train), "valid": [fold.valid], "test": [fold.test]}
        for fold in protocol.folds(metadata)
    ]
    assert result == kit_module().data_splits_from_folds(names)


@pytest.mark.parametrize("values", [[0.5, 0.75, 0.75], [0.5, -math.inf], [0.25, 0.25]])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_hyperparameters_are_hear_eval_kits(values, mode):
    kit = kit_module()
    rest = dict.fromkeys(
        ("predictor", "model_path", "epoch", "time_in_min", "hparams", "postprocessing", "trainer")
    )
    points = [
        kit.GridPointResult(**rest, validation_score=v, score_mode=mode, conf={"position": i})
        for i, v in enumerate(values)
    ]
    expected = kit.sort_grid_points(points)[0].conf["position"]
    assert best(range(len(values)), values, mode == "max") == expected


@pytest.mark.parametrize("hop", [10.0, 50.0, 61.0])
@pytest.mark.parametrize("median_filter_ms", [0, 50, 100, 250, 2000])
def test_events_are_hear_eval_kits(tmp_path, median_filter_ms, hop):
    rng = np.random.default_rng(0)
    frames, labels = 30, ["a", "b", "c"]
    smooth = rng.random((2 * frames, 3)).cumsum(axis=0) % 1
    probabilities = torch.tensor(smooth, dtype=torch.float32)
    names = [f"folder/{i // frames}.wav" for i in range(2 * frames)]
    times = [hop * (i % frames) + float(rng.random()) for i in range(2 * frames)]
    order = rng.permutation(2 * frames)  # rows of a file may be in any order
    timestamps = [[names[i], times[i]] for i in order]
    settings = {"median_filter_ms": median_filter_ms, "min_duration": 2 * hop}
    expected = kit_module().get_events_for_all_files(
        probabilities,
        [name for name, _ in timestamps],
        torch.tensor([time for _, time in timestamps], dtype=torch.float64),
        dict(enumerate(labels)),
        {key: [value] for key, value in settings.items()},
    )
    active = probabilities.numpy() > THRESHOLD
    result = find_events(active, group_by_file(timestamps, tmp_path), labels, **settings)
    assert result == next(iter(expected.values()))
    assert median_filter_ms > 10 * hop or any(result.values())


def test_of_tied_postprocessings_the_one_with_larger_settings_wins():
    short, long = (("a", 1), ("b", 125)), (("a", 1), ("b", 250))
    assert best_postprocessing({long: 0.5, short: 0.5}) == long
    assert best_postprocessing({short: 0.6, long: 0.5}) == short
    assert best_postprocessing({short: math.nan, long: -1.0}) == short  # nan counts as 0


def test_a_score_that_is_not_a_number_ends_the_training():
    trial = Trial(0, {"patience": 20}, Fold(("train",), "valid", "test"))
    assert trial.improves(math.nan, maximize=True)  # the first is always kept
    assert trial.ended
    assert trial.value == -math.inf


def test_another_seed_changes_the_random_numbers_but_not_the_grid(monkeypatch):
    kit = kit_module()
    from heareval.predictions import runner

    seen = []

    def run():
        kit.seed_everything(42, workers=False)
        seen.append((sys.argv[1:], random.random(), torch.rand(3).tolist()))

    monkeypatch.setattr(runner, "runner", run)
    monkeypatch.setattr(kit, "seed_everything", kit.seed_everything)  # restored at the end
    monkeypatch.setenv("PL_GLOBAL_SEED", "")
    run()
    for seed in ("43", "43", "44"):
        monkeypatch.setattr(sys, "argv", ["heareval_seed", seed, "toy"])
        heareval_seed.main()
    usual, first, again, other = seen
    assert first == again
    assert first[0] == ["toy"]
    assert usual[1] == first[1] == other[1]
    assert usual[2] != first[2] != other[2]


def test_one_class_in_a_fold_is_scored_as_by_hear_eval_kit(kit_of, monkeypatch):
    rows, _, grid, metadata = TASKS["k-fold"]
    monkeypatch.setitem(TASKS, "one class", (rows, "one class", grid, metadata))
    monkeypatch.setattr("test_score_parity.EXACT", [*EXACT, "one class"])
    result = compare(kit_of, "one class")
    assert math.isnan(result.raw["fold00"]["test_aucroc"])
    assert read_task(kit_of("one class")[0]).labels["fold00"]["0.wav"] == ["l0"]
