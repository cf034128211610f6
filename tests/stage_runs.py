"""Stages of the data and pre-training in the current folder, in this process."""

from pathlib import Path

import pytest
import synthetic_sources as synthetic
from ruamel.yaml import YAML

import stages.download
import stages.logmel
import stages.resample
from pipeline.core.stage import run

ROOT = Path(__file__).parents[1]
MAINS = {
    "download": stages.download.main,
    "resample": stages.resample.main,
    "logmel": stages.logmel.main,
}


def change_params(changes, base=Path("params.yaml")):
    """Write params.yaml: that of `base` with some keys changed."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(base)
    for key, value in changes.items():
        section = values
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = section[last] | value if isinstance(section[last], dict) else value
    yaml.dump(values, Path("params.yaml"))


def use(source, **changes):
    """Choose a source, with some of its parameters changed."""
    place = {"path": "data/folder"} if source == "folder" else {}
    change_params({"source": source, f"sources.{source}": place | changes})


def make(source):
    """Write a source's data in its published layout and choose it; return its labels by clip id."""
    if source == "parquet":
        pytest.importorskip("pyarrow")
    layout, changes, labels = synthetic.SOURCES[source]
    layout(Path("data", source))
    use(source, **changes)
    return labels


def run_stages(*names):
    """Run stages of the data one after the other."""
    for name in names:
        run(name, MAINS[name])
