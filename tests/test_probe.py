"""The probe scores as scikit-learn's own pipelines do, on the right splits and encoders."""

import json
import shutil
import signal
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synthetic_hear import (
    LABELS,
    RATE,
    ROOT,
    SMALL,
    write_checkpoint,
    write_event_task,
    write_fold_task,
    write_scene_task,
    write_task,
)
from test_params import changed

import stages.probe
import stages.validate
from pipeline.config import Config
from pipeline.core.params import check
from pipeline.core.stage import Stage, run
from pipeline.hear import api, probe
from pipeline.hear.embed.embed import HearModule
from pipeline.hear.probe import EmbeddedSplit
from pipeline.hear.score.metrics import mean_average_precision
from pipeline.hear.tasks import selection
from pipeline.hear.tasks.audio import read_clip
from pipeline.hear.tasks.task import read_task
from pipeline.report import probe_table

TASK = "toy-v1-small"


# ---- classifiers ------------------------------------------------------------------------------


@pytest.fixture
def splits():
    """Three overlapping classes; validation has another mean and standard deviation."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 20))

    def draw(clips, shift, scale):
        y = np.arange(clips) % 3
        x = centers[y] + scale * rng.normal(size=(clips, 20)) + shift
        return EmbeddedSplit(
            (x * np.geomspace(1, 100, 20)).astype(np.float32), np.eye(3, dtype=bool)[y]
        )

    return draw(60, 0.0, 1.5), draw(40, 1.0, 2.5)


@pytest.fixture
def multilabel_splits(splits):
    """As above with clips of two labels or none, a label only in training and one on all clips."""

    def with_more(split, row, absent):
        y = split.y | np.roll(split.y, 1, axis=1) & (np.arange(len(split.y)) % 4 == 0)[:, None]
        y[5] = False
        extra = np.zeros((len(y), 2), bool)
        extra[row, 0] = not absent
        extra[:, 1] = True
        return EmbeddedSplit(split.x, np.concatenate([y, extra], axis=1))

    train, valid = splits
    return with_more(train, slice(3), False), with_more(valid, slice(3), True)


@pytest.mark.parametrize(("neighbors", "inverse_l2"), [(10, 1.0), (3, 0.01)])
def test_multiclass_scores_are_those_of_scikit_learns_pipelines(splits, neighbors, inverse_l2):
    train, valid = splits
    classifiers = {
        "knn": KNeighborsClassifier(neighbors, metric="cosine"),
        "linear": LogisticRegression(C=inverse_l2, max_iter=1000),
    }
    expected = {}
    for name, classifier in classifiers.items():
        model = make_pipeline(StandardScaler(), classifier).fit(train.x, train.y.argmax(axis=1))
        expected[name] = model.score(valid.x, valid.y.argmax(axis=1))
    result = probe.score(train, valid, multilabel=False, neighbors=neighbors, inverse_l2=inverse_l2)
    assert result == pytest.approx(expected, abs=1e-6)
    assert all(0.34 < value < 0.99 for value in expected.values())  # neither chance nor perfect
    assert (
        probe.score(valid, train, multilabel=False, neighbors=neighbors, inverse_l2=inverse_l2)
        != result
    )


def test_multilabel_scores_are_those_of_scikit_learns_pipelines(multilabel_splits):
    train, valid = multilabel_splits
    kinds = [0, 1, 2]  # label 3 is absent from validation, label 4 is on every clip
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=1000)))
    linear = model.fit(train.x, train.y[:, kinds]).predict_proba(valid.x)
    model = make_pipeline(StandardScaler(), KNeighborsClassifier(10, metric="cosine"))
    result = model.fit(train.x, train.y[:, kinds]).predict_proba(valid.x)
    knn = np.stack([label[:, 1] for label in result], axis=1)
    expected = {
        name: np.mean([*(average_precision_score(valid.y[:, i], s[:, i]) for i in kinds), 1.0])
        for name, s in (("knn", knn), ("linear", linear))
    }
    scores = probe.score(train, valid, multilabel=True, neighbors=10, inverse_l2=1.0)
    assert scores == pytest.approx(expected, abs=1e-6)


def test_average_precision_by_hand():
    y = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.0, 0.0], [0.7, 0.3, 0.0], [0.6, 0.2, 0.0]])
    first, second = (1 / 1 + 2 / 3) / 2, 1 / 4  # the third has no clips
    assert probe.map_of_present_labels(y, scores) == pytest.approx((first + second) / 2)


def test_neighbors_are_nearest_by_angle_after_standardization():
    x = np.array([[2.0, 0.1], [0.1, 1.0], [-2.0, -0.1], [-0.1, -1.0]], np.float32)
    train = EmbeddedSplit(x, np.eye(4, dtype=bool))
    far = EmbeddedSplit(
        np.array([[50.0, 1.0], [0.0, -0.01]], np.float32), np.eye(4, dtype=bool)[[0, 3]]
    )
    assert probe.score(train, far, multilabel=False, neighbors=1, inverse_l2=1.0)["knn"] == 1.0


def test_with_fewer_clips_than_neighbors_all_clips_are_neighbors(splits):
    train, valid = splits
    few = EmbeddedSplit(train.x[:7], train.y[:7])
    scores = [
        probe.score(few, valid, multilabel=False, neighbors=n, inverse_l2=1.0) for n in (7, 1000)
    ]
    assert scores[0] == scores[1]


# ---- splits and encoders ----------------------------------------------------------------------


def test_each_kind_of_task_has_its_training_and_validation_split(tmp_path):
    task = read_task(write_scene_task(tmp_path / "scene"))
    assert probe.training_and_validation(task) == (["train"], "valid")
    task = read_task(write_fold_task(tmp_path / "folds", folds=4))
    assert probe.training_and_validation(task) == (["fold01", "fold02", "fold03"], "fold00")
    task = read_task(write_event_task(tmp_path / "event"))
    with pytest.raises(ValueError, match=r"probe\.tasks: event is an event task; only scenes"):
        probe.training_and_validation(task)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / "audiontt", "audiontt", **SMALL)
    return HearModule(api, api.load_model(str(folder)))


def assert_is_embedded(split, task, names, module):
    """Each row is the embedding of one clip of the named splits, with that clip's label."""
    clips = [(name, clip) for name in names for clip in task.labels[name]]
    assert len(split.x) == len(clips)
    for name, clip in clips:
        wave, _ = read_clip(task.audio(RATE, name) / clip)
        x = module(torch.from_numpy(wave)[None], "scene")[0][0]
        (row,) = np.flatnonzero(np.isclose(split.x, x, rtol=1e-4, atol=1e-4).all(axis=1))
        assert [sorted(LABELS)[i] for i in np.flatnonzero(split.y[row])] == task.labels[name][clip]


@pytest.mark.parametrize(
    ("write", "train", "valid", "unused"),
    [
        (write_scene_task, ["train"], ["valid"], "test"),
        (write_fold_task, ["fold01", "fold02"], ["fold00"], None),
    ],
)
def test_the_test_split_is_never_read(tmp_path, module, write, train, valid, unused):
    folder = write(tmp_path / "task")
    if unused:
        shutil.rmtree(folder / str(RATE) / unused)
    task = read_task(folder)
    (tmp_path / "scratch").mkdir()
    result = probe.embed_splits(task, module, tmp_path / "scratch")
    assert_is_embedded(result[0], task, train, module)
    assert_is_embedded(result[1], task, valid, module)


def test_labels_may_be_numbers(tmp_path, module):
    labels = {split: {"a.wav": [2], "b.wav": [0]} for split in ("train", "valid", "test")}
    folder = write_task(tmp_path / "task", labels)
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,0\n1,1\n2,2\n")
    (tmp_path / "scratch").mkdir()
    train, valid = probe.embed_splits(read_task(folder), module, tmp_path / "scratch")
    assert sorted(train.y.tolist()) == sorted(valid.y.tolist()) == [[False, True], [True, False]]


def test_the_encoders_are_the_initial_one_the_snapshots_and_the_final_one(tmp_path):
    pretrain, random = tmp_path / "pretrain", tmp_path / "random"
    for epoch in (10, 5):
        (pretrain / "snapshots" / f"epoch-{epoch:05d}").mkdir(parents=True)
    (pretrain / "epochs.csv").write_text("epoch,loss\n1,3.5\n10,2.5\n")
    folders = probe.encoder_folders(pretrain, random)
    assert list(folders.items()) == [
        (0, random),
        (5, pretrain / "snapshots" / "epoch-00005"),
        (10, pretrain),
    ]
    shutil.rmtree(pretrain / "snapshots")
    assert probe.encoder_folders(pretrain, random) == {0: random, 10: pretrain}


# ---- the stage --------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A task and three encoders, with the committed parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/probed.json").write_text(json.dumps([TASK]))
    write_scene_task(tmp_path / "data/hear" / TASK, clips=(12, 9, 3))
    pretrain = write_checkpoint(tmp_path / "data/pretrained", "audiontt", **SMALL)
    for folder in (tmp_path / "data/random", pretrain / "snapshots/epoch-00004"):
        write_checkpoint(folder, "audiontt", **SMALL)
    (pretrain / "epochs.csv").write_text("epoch,loss\n8,2.5\n")
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def test_the_stage_writes_one_row_for_each_encoder(repository, monkeypatch):
    calls = []

    def score(train, valid, **options):
        calls.append((len(train.x), len(valid.x), options))
        return {"knn": 0.25, "linear": 0.5 + len(calls) / 100}

    monkeypatch.setattr(probe, "score", score)
    run("probe", partial(stages.probe.main, name=TASK), TASK)
    curve = pd.read_csv(repository / f"reports/probe/{TASK}.csv")
    assert curve.columns.tolist() == probe_table.COLUMNS
    assert curve.to_numpy().tolist() == [[0, 0.25, 0.51], [4, 0.25, 0.52], [8, 0.25, 0.53]]
    assert calls == [(12, 9, {"multilabel": False, "neighbors": 10, "inverse_l2": 1.0})] * 3
    assert not list((repository / ".work").rglob("*.npy"))


def test_the_stage_is_deterministic(repository):
    texts = []
    for _ in range(2):
        run("probe", partial(stages.probe.main, name=TASK), TASK)
        texts.append((repository / f"reports/probe/{TASK}.csv").read_bytes())
    assert texts[0] == texts[1]
    assert texts[0].startswith(b"epoch,knn,linear\n0,")


def test_a_task_that_is_not_probed_has_an_empty_curve(repository):
    (repository / "reports/probed.json").write_text("[]")
    run("probe", partial(stages.probe.main, name=TASK), TASK)
    assert (repository / f"reports/probe/{TASK}.csv").read_text() == "epoch,knn,linear\n"


# ---- parameters -------------------------------------------------------------------------------


def test_a_probed_task_must_be_among_the_tasks():
    content = changed("probe.tasks", ["esc50-v2.0.0-full"])
    with pytest.raises(ValueError, match=r"probe\.tasks: esc50-v2\.0\.0-full must be among hear"):
        check(content, Config)
    assert check(changed("probe.tasks", []), Config).probe.tasks == []


def test_an_event_task_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data/sample/tasks", tmp_path / "data/sample/tasks")
    (tmp_path / "data/sample/segments.csv").touch()
    text = (ROOT / "params.yaml").read_text()
    assert "\n  tasks: auto" in text
    one = text.replace("\n  tasks: auto", "\n  tasks: [sonicpi_beats-v1-small]")
    (tmp_path / "params.yaml").write_text(one)
    with pytest.raises(ValueError, match=r"probe\.tasks: sonicpi_beats-v1-small is an event task"):
        stages.validate.main(Stage("validate"))
    (tmp_path / "params.yaml").write_text(text)
    stages.validate.main(Stage("validate"))
    probed = json.loads((tmp_path / "reports/probed.json").read_bytes())
    assert probed == ["sonicpi_kind-v1-small"]  # the other one has events


def test_the_smallest_tasks_are_probed_those_with_folds_last(tmp_path):
    names = ["folds", "large", "small", "medium"]
    write_fold_task(tmp_path / "folds", clips=1)
    for name, clips in zip(names[1:], [(9, 9, 9), (2, 2, 2), (4, 4, 4)], strict=True):
        write_scene_task(tmp_path / name, clips=clips)
    assert selection.choose_probed(tmp_path, names) == ["small", "medium"]
    assert selection.choose_probed(tmp_path, ["folds", "large"]) == ["large", "folds"]


def test_tasks_of_hear_are_probed_by_what_is_known_of_them():
    names = ["esc50-v2.0.0-full", "maestro-v3.0.0-5h", "speech_commands-v0.0.2-5h", "toy"]
    expected = ["speech_commands-v0.0.2-5h", "esc50-v2.0.0-full"]
    assert selection.choose_probed(None, names) == expected
    events = {"dcase2016_task2-hear2021-full", "maestro-v3.0.0-5h"}
    assert set(selection.HEAR_SCENES) == set(selection.HEAR_TASKS) - events


@pytest.mark.parametrize("wrong", ["esc50-v2.0.0-full", None])
def test_probed_tasks_are_auto_or_a_list(wrong):
    assert check(changed("probe.tasks", "auto"), Config).probe.tasks is None
    with pytest.raises(ValueError, match=r"probe\.tasks: .* must be auto or a list"):
        check(changed("probe.tasks", wrong), Config)


# ---- the table --------------------------------------------------------------------------------


def write_curve(folder, task, linear, every=5):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{every * i},0.5,{value}" for i, value in enumerate(linear)]
    (folder / f"{task}.csv").write_text("\n".join(["epoch,knn,linear", *rows]) + "\n")


def test_the_best_epoch_has_the_highest_mean_over_the_tasks(tmp_path):
    write_curve(tmp_path, "a", [0.2, 0.6, 0.9, 0.7])
    write_curve(tmp_path, "b", [0.2, 0.8, 0.4, 0.7])
    table = probe_table.read_probe(tmp_path, ["a", "b"], epochs=15, snapshot_epochs=5)
    assert table.mean.to_dict() == pytest.approx({0: 0.2, 5: 0.7, 10: 0.65, 15: 0.7})
    assert (table.best, table.first_as_good) == (5, 5)
    assert table.folder(5) == "data/pretrained/snapshots/epoch-00005"
    assert [table.folder(epoch) for epoch in (0, 15)] == ["data/random", "data/pretrained"]
    assert table.missing_tasks == table.missing_epochs == []


def test_missing_tasks_and_epochs_are_named(tmp_path):
    write_curve(tmp_path, "a", [0.2, 0.6, 0.9])
    table = probe_table.read_probe(tmp_path, ["a", "b"], epochs=23, snapshot_epochs=5)
    assert table.missing_tasks == ["b"]
    assert table.missing_epochs == [15, 20, 23]
    write_curve(tmp_path, "b", [0.2, 0.6])
    table = probe_table.read_probe(tmp_path, ["a", "b"], epochs=10, snapshot_epochs=0)
    assert table.missing_epochs == [10]
    none = probe_table.read_probe(tmp_path, [], epochs=23, snapshot_epochs=5)
    assert none.curves == {} and none.missing_epochs == none.missing_tasks == []


def test_curves_of_different_runs_are_refused(tmp_path):
    write_curve(tmp_path, "a", [0.2])
    (tmp_path / "b.csv").write_text("epoch,knn,linear\n3,0.5,0.5\n")
    with pytest.raises(ValueError, match="no epoch in common"):
        probe_table.read_probe(tmp_path, ["a", "b"], epochs=10, snapshot_epochs=0)


@pytest.mark.parametrize(
    "text", ["", "epoch,knn\n1,0.5\n", "epoch,knn,linear\n", "epoch,knn,linear\n0,0.5,nan\n"]
)
def test_a_damaged_curve_is_refused(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=r"a\.csv .*Delete the file and run `dvc repro`"):
        probe_table.read_probe(tmp_path, ["a"], epochs=5, snapshot_epochs=0)


def test_a_label_without_clips_counts_for_hear_but_not_for_the_probe():
    y = np.array([[True, False], [False, False]])
    scores = np.array([[0.9, 0.2], [0.1, 0.3]])
    assert probe.map_of_present_labels(y, scores) == 1.0
    hear_map = mean_average_precision(torch.from_numpy(scores)[None], torch.from_numpy(y).int())
    assert hear_map.tolist() == [0.5]
