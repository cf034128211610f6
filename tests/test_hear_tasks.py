"""HEAR tasks: what is accepted, and errors that name task, file and field."""

import ast
import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
from synthetic_hear import ROOT, write_event_task, write_fold_task, write_scene_task, write_task

from pipeline.hear.tasks import task as hear_tasks
from pipeline.hear.tasks.task import available_tasks, find_task, read_task

SAMPLE = ROOT / "data/sample/tasks"
MISSING = object()
EVENT = {"label": "low", "start": 0.0, "end": 1.0}


def edit(path: Path, **changes) -> None:
    content = {**json.loads(path.read_text()), **changes}
    present = {key: value for key, value in content.items() if value is not MISSING}
    path.write_text(json.dumps(present))


@pytest.mark.parametrize("name", available_tasks(SAMPLE))
def test_the_tasks_of_the_sample_corpus_are_valid(name):
    task = read_task(find_task(SAMPLE, name))
    assert task.name == name
    assert list(task.labels) == ["train", "valid", "test"]


def test_a_task_keeps_splits_and_files_in_stored_order(tmp_path):
    task = read_task(write_fold_task(tmp_path / "toy-v1-full"))
    assert list(task.labels) == ["fold00", "fold01", "fold02"]
    stored = list(json.loads((task.folder / "fold01.json").read_text()))
    assert stored != sorted(stored)
    assert list(task.labels["fold01"]) == stored


def test_events_may_have_integer_labels_and_times(tmp_path):
    folder = write_event_task(tmp_path / "notes")
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,21\n1,22\n2,high\n3,low\n4,noise\n")
    edit(folder / "train.json", **{"0.wav": [{"label": 21, "start": 0, "end": 5}]})
    assert read_task(folder).labels["train"]["0.wav"][0].label == 21


def test_metrics_are_those_of_heareval():
    source = Path(importlib.util.find_spec("heareval").origin).with_name("score.py").read_text()
    (scores,) = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "available_scores"
    ]
    known = {key.value for key in scores.keys}
    assert known == {*hear_tasks.SCENE_METRICS, *hear_tasks.EVENT_METRICS}


def test_the_message_for_an_unknown_task_lists_the_available_ones(tmp_path):
    write_scene_task(tmp_path / "b-v1-full")
    write_scene_task(tmp_path / "a-v1-full")
    (tmp_path / "notes").mkdir()
    assert available_tasks(tmp_path) == ["a-v1-full", "b-v1-full"]
    with pytest.raises(ValueError, match=r"hear.tasks: 'esc' .* available: a-v1-full, b-v1-full"):
        find_task(tmp_path, "esc")


def test_without_any_tasks_the_folder_is_named(tmp_path):
    assert available_tasks(tmp_path / "absent") == []
    with pytest.raises(ValueError, match=r"is not a task in .*absent; available: none"):
        find_task(tmp_path / "absent", "esc")


METADATA_FAULTS = [
    ({"task_name": MISSING}, "field 'task_name': Field required"),
    ({"embedding_type": "clip"}, "field 'embedding_type': .*'scene' or 'event'.*got 'clip'"),
    ({"prediction_type": "binary"}, "field 'prediction_type'.*got 'binary'"),
    ({"split_mode": "random"}, "field 'split_mode'.*got 'random'"),
    ({"splits": "train"}, "field 'splits': .*array, got 'train'"),
    ({"splits": ["train", "test"]}, r"splits = \['train', 'test'\]: must be \['train', 'valid'"),
    ({"splits": ["../x", "valid", "test"]}, "field 'splits.0': '../x' must be the plain name"),
    ({"sample_duration": 0.0}, "field 'sample_duration'.*got '0.0'"),
    ({"sample_duration": MISSING}, "field 'sample_duration': Field required"),
    ({"evaluation": []}, "field 'evaluation'"),
    ({"evaluation": ["f1"]}, r"evaluation = \['f1'\]: not a metric of scene tasks, .*top1_acc"),
    (
        {"evaluation": ["top1_acc", "segment_1s_er"]},
        r"\['segment_1s_er'\]: not a metric of scene tasks",
    ),
    ({"embedding_type": "event"}, "prediction_type = 'multiclass': an event task must be"),
    ({"evaluation": MISSING, "evalution": ["mAP"]}, "'evalution': did you mean 'evaluation'"),
    (
        {"evaluation_param": {}},
        "unknown field 'evaluation_param': did you mean 'evaluation_params'",
    ),
    ({"evaluation_params": []}, "field 'evaluation_params'"),
    (
        {"evaluation_params": {"event_postprocessing_grid": {"median_ms": [150]}}},
        "field 'evaluation_params.event_postprocessing_grid.median_ms'.*'median_filter_ms'",
    ),
    ({"use_scoring_for_early_stopping": "no"}, "field 'use_scoring_for_early_stopping'.*'no'"),
    (
        {"evaluation_params": {"task_specific_param_grid": {"lr": "0.1"}}},
        "field 'evaluation_params.task_specific_param_grid.lr'",
    ),
    ({"split_mode": "presplit_kfold", "splits": ["a", "b"]}, "at least 3 different folds"),
    ({"split_mode": "new_split_kfold", "splits": ["a", "b", "b"]}, "at least 3 different folds"),
]


@pytest.mark.parametrize(("changes", "message"), METADATA_FAULTS)
def test_invalid_metadata_is_named_with_task_file_and_field(tmp_path, changes, message):
    folder = write_scene_task(tmp_path / "toy-v1-full")
    edit(folder / "task_metadata.json", **changes)
    with pytest.raises(ValueError, match=rf"toy-v1-full/task_metadata.json.*{message}"):
        read_task(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header must be idx,label"),
        ("index,label\n0,high\n", "header must be idx,label, got 'index,label'"),
        ("idx,label\n", "idx must count from 0"),
        ("idx,label\n0,high\n2,low\n", r"without gaps.*'0,high', '2,low'"),
        ("idx,label\n1,high\n2,low\n", "without gaps"),
        ("idx,label\n0,high\n0,low\n1,noise\n", "without gaps"),
        ("idx,label\n0,high\n1\n", "one label each"),
        ("idx,label\n0,high\n1,Cough, dry\n", "in quotes if it has a comma.*'1,Cough, dry'"),
        ("idx,label\n0,high\n1,high\n", "label 'high' appears more than once"),
        ("idx,label\n0,high\n1,low\n", r"train.json, file '2.wav': label 'noise' is not in label"),
    ],
)
def test_an_invalid_vocabulary_is_named(tmp_path, text, message):
    folder = write_scene_task(tmp_path / "toy-v1-full")
    (folder / "labelvocabulary.csv").write_text(text)
    with pytest.raises(ValueError, match=f"toy-v1-full/.*{message}"):
        read_task(folder)


def test_a_label_with_a_comma_or_quotes_is_quoted(tmp_path):
    folder = write_scene_task(tmp_path / "toy-v1-full")
    text = 'idx,label\r\n0,"Cough, dry"\r\n1,"the ""p"" sound"\r\n'
    (folder / "labelvocabulary.csv").write_text(text)
    for split in ("train", "valid", "test"):
        labels = {"0.wav": ["Cough, dry"], "1.wav": ['the "p" sound']}
        (folder / f"{split}.json").write_text(json.dumps(labels))
    assert read_task(folder).labels["test"]["0.wav"] == ["Cough, dry"]
    vocabulary = pd.read_csv(folder / "labelvocabulary.csv")  # as heareval reads it
    assert list(vocabulary["label"]) == ["Cough, dry", 'the "p" sound']


@pytest.mark.parametrize("content", [b"idx,label\n0,\xff\n", b'idx,label\n0,"' + b"x" * 200_000])
def test_a_vocabulary_that_cannot_be_read_is_named(tmp_path, content):
    folder = write_scene_task(tmp_path / "toy-v1-full")
    (folder / "labelvocabulary.csv").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"toy-v1-full/labelvocabulary\.csv is not a UTF-8 CSV file"
    ):
        read_task(folder)


def test_a_vocabulary_may_begin_with_a_byte_order_mark_as_in_hear_eval_kit(tmp_path):
    folder = write_scene_task(tmp_path / "toy-v1-full")
    path = folder / "labelvocabulary.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_task(folder).labels
    assert list(pd.read_csv(path).columns) == ["idx", "label"]  # as heareval reads it


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "lists no files"),
        ({"a.wav": "low"}, "field 'a.wav': .*array, got 'low'"),
        ({"a.wav": []}, r"file 'a.wav': a multiclass task has one label per file, got \[\]"),
        ({"a.wav": ["low", "high"]}, r"one label per file, got \['low', 'high'\]"),
        ({"a.wav": ["loud"]}, "file 'a.wav': label 'loud' is not in labelvocabulary.csv.*high"),
        ({"../a.wav": ["low"]}, "'../a.wav' must be the plain name"),
        ({"..": ["low"]}, "'..' must be the plain name"),
        ([], "an object, got"),
    ],
)
def test_invalid_scene_labels_are_named(tmp_path, files, message):
    folder = write_scene_task(tmp_path / "toy-v1-full")
    (folder / "valid.json").write_text(json.dumps(files))
    with pytest.raises(ValueError, match=f"toy-v1-full/valid.json.*{message}"):
        read_task(folder)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"a.wav": ["low"], "b.wav": ["low"], "a.wav": ["high"]}', "a.wav"),
        ('{"a.wav": ["low"], "a.wav": ["low"]}', "a.wav"),
    ],
)
def test_a_file_that_is_listed_twice_is_named(tmp_path, text, key):
    folder = write_scene_task(tmp_path / "toy-v1-full")
    (folder / "valid.json").write_text(text)
    with pytest.raises(ValueError, match=f"toy-v1-full/valid.json: key {key!r} appears more than"):
        read_task(folder)


def test_a_repeated_field_of_an_event_or_of_the_metadata_is_named(tmp_path):
    folder = write_event_task(tmp_path / "toy-v1-full")
    for file, key in (("test.json", "label"), ("task_metadata.json", "splits")):
        path = folder / file
        path.write_text(path.read_text().replace(f'"{key}": ', f'"{key}": 1, "{key}": ', 1))
        with pytest.raises(ValueError, match=f"toy-v1-full/{file}: key {key!r} appears more than"):
            read_task(folder)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("low", "field '0.wav.0'"),
        ({**EVENT, "label": "loud"}, "file '0.wav': label 'loud' is not in"),
        ({**EVENT, "start": -1}, "field '0.wav.0.start'.*greater than or equal to 0"),
        ({**EVENT, "end": "1"}, "field '0.wav.0.end'.*got '1'"),
        ({**EVENT, "start": 2.0}, "field '0.wav.0': end = 1.0 ms is before start = 2.0 ms"),
        ({"label": "low", "start": 0.0}, "field '0.wav.0.end': Field required"),
        ({**EVENT, "end": float("nan")}, "field '0.wav.0.end'.*finite"),
    ],
)
def test_invalid_events_are_named(tmp_path, event, message):
    folder = write_event_task(tmp_path / "toy-v1-full")
    edit(folder / "test.json", **{"0.wav": [event]})
    with pytest.raises(ValueError, match=f"toy-v1-full/test.json.*{message}"):
        read_task(folder)


def test_a_multilabel_scene_may_have_any_number_of_labels(tmp_path):
    labels = {"a.wav": [], "b.wav": ["low", "high"]}
    folder = write_task(
        tmp_path / "toy",
        {"train": labels, "valid": labels, "test": labels},
        prediction_type="multilabel",
        evaluation=["mAP"],
        sample_duration=None,
    )
    assert read_task(folder).labels["train"] == labels


@pytest.mark.parametrize("name", ["task_metadata.json", "labelvocabulary.csv", "valid.json"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_scene_task(tmp_path / "toy")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"toy/{name} is missing"):
        read_task(folder)


def test_a_file_that_is_not_json_is_named(tmp_path):
    folder = write_scene_task(tmp_path / "toy")
    (folder / "train.json").write_text('{"a.wav": ')
    with pytest.raises(ValueError, match=r"toy/train.json: Invalid JSON"):
        read_task(folder)
