"""Results of earlier parameters, recognized by DVC's record."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.report.lineage import Lineage

ROOT = Path(__file__).parents[1]
SCORE = Path("reports/scores/pretrained/a.json")
DATA, MODEL, EMBEDDINGS = "data/hear/a", "data/pretrained", "data/embeddings/pretrained/a"


def stage(deps, out, **params):
    return {
        "cmd": "x",
        "deps": [{"path": path, "md5": md5} for path, md5 in deps.items()],
        "params": {"params.yaml": params},
        "outs": [{"path": out[0], "md5": out[1]}],
    }


@pytest.fixture
def record(tmp_path, monkeypatch):
    """The record of a complete run, to be changed and then written by `why`."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return {
        "validate": stage({}, ("reports/config.ok", "0"), encoder="another"),
        "pretrain": stage(
            {"reports/config.ok": "0", "stages/pretrain.py": "1"},
            (MODEL, "2"),
            **{"encoder": "audiontt", "loss.alpha": 1.0},
        ),
        "hear_tasks@a": stage({}, (DATA, "3")),
        "embed@a-pretrained": stage(
            {DATA: "3", MODEL: "2"}, (EMBEDDINGS, "4"), **{"hear.window_ms": 950.0}
        ),
        "score@a-pretrained": stage({EMBEDDINGS: "4"}, (str(SCORE), "5")),
    }


def why(record, output=SCORE):
    YAML().dump({"schema": "2.0", "stages": record}, Path("dvc.lock"))
    return Lineage().why_outdated(output)


def edit_params(old, new):
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new, 1))


def test_a_score_of_the_present_run_is_current(record):
    assert why(record) == ""


def test_a_score_is_outdated_if_its_encoder_was_trained_again(record):
    record["pretrain"]["outs"][0]["md5"] = "6"
    assert why(record) == "embed@a-pretrained was run with another data/pretrained"


def test_a_score_is_outdated_if_a_parameter_of_a_stage_before_was_changed(record):
    edit_params("window_ms: 950.0", "window_ms: 20.0")
    assert why(record) == "embed@a-pretrained was run with another hear.window_ms"
    edit_params("encoder: audiontt", "encoder: vitc")
    assert "another" in why(record)


def test_a_score_is_outdated_if_a_parameter_was_removed(record):
    record["hear_tasks@a"]["params"]["params.yaml"]["hear.sources.gone"] = {"path": "x"}
    assert why(record) == "hear_tasks@a was run with another hear.sources.gone"


def test_an_output_without_a_record_counts_as_current(record):
    assert why(record, Path("reports/scores/pretrained/b.json")) == ""
    assert Lineage(Path("missing")).why_outdated(SCORE) == ""
