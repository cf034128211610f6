"""The identity of code: what it does, in all modules that it needs, and nothing else."""

import shutil
from pathlib import Path

import pytest

from pipeline.core.code_identity import code_identity, import_closure

ROOT = Path(__file__).parents[1]
KEPT = {  # module that does the work -> modules that its results depend on
    "pipeline.corpus.resample": (
        "audio",
        "corpus/clips/ledger",
        "corpus/clips/tar_shards",
        "corpus/resample",
    ),
    "pipeline.corpus.logmel": (
        "audio",
        "corpus/clips/ledger",
        "features/front_end",
        "features/stats",
    ),
    "pipeline.pretrain.loop": ("pretrain/loss", "pretrain/loader", "encoders/vit"),
    "pipeline.hear.models.registry": ("hear/api/timestamps", "hear/embed/embed", "audio"),
}
# What only runs the work: a change of it must not cost a run of days.
RUNNERS = ("core/stage", "core/locks", "corpus/clips/shard_cache", "parallel/processes")


@pytest.fixture
def copy(tmp_path):
    """A copy of the package whose files may be changed."""
    ignored = shutil.ignore_patterns("__pycache__")  # which other processes change meanwhile
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=ignored)
    return tmp_path


def append(root: Path, module: str, text: str) -> None:
    path = root / "pipeline" / f"{module}.py"
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize("module", KEPT)
def test_comments_docstrings_and_layout_do_not_count(copy, module):
    before = code_identity(module, root=copy)
    for path in (copy / "pipeline").rglob("*.py"):
        text = path.read_text()
        path.write_text(f'"""Another docstring."""\n{text[text.index(chr(10)) :]}\n# a comment\n\n'
                        if text.startswith('"""') and text[3:].find('"""') < text.find("\n")
                        else f"# a comment\n{text}\n")  # fmt: skip
    assert code_identity(module, root=copy) == before


@pytest.mark.parametrize(
    ("module", "changed"), [(module, name) for module, names in KEPT.items() for name in names]
)
def test_a_constant_counts_in_every_module_that_is_needed(copy, module, changed):
    before = code_identity(module, root=copy)
    append(copy, changed, "\nANOTHER = 1\n")
    other = code_identity(module, root=copy)
    assert other != before
    path = copy / "pipeline" / f"{changed}.py"
    path.write_text(path.read_text().replace("ANOTHER = 1", "ANOTHER = 2"))
    assert code_identity(module, root=copy) not in (before, other)


@pytest.mark.parametrize("module", [name for name in KEPT if "hear" not in name])
def test_what_only_runs_the_work_does_not_count(copy, module):
    before = code_identity(module, root=copy)
    for runner in RUNNERS:
        append(copy, runner, "\nANOTHER = 1\n")
    assert code_identity(module, root=copy) == before


def test_the_body_of_a_function_counts_but_not_how_it_is_written(tmp_path):
    (tmp_path / "pipeline").mkdir()
    path = tmp_path / "pipeline" / "module.py"
    path.write_text('"""Old."""\ndef f(x):\n    """Old."""\n    return x + 1\n')
    before = code_identity("pipeline.module", ["numpy"], tmp_path)
    path.write_text('"""New."""\n# a remark\ndef f(x):\n\n    return (x + 1)\n')
    assert code_identity("pipeline.module", ["numpy"], tmp_path) == before
    assert code_identity("pipeline.module", root=tmp_path) != before
    path.write_text("def f(x):\n    return x + 2\n")
    assert code_identity("pipeline.module", ["numpy"], tmp_path) != before


def test_the_closure_holds_what_imports_in_functions_need(tmp_path):
    package = tmp_path / "pipeline" / "part"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from pipeline.part import b\n    return b\n")
    (package / "b.py").write_text("import numpy\n")
    found = import_closure("pipeline.part.a", tmp_path)
    assert {path.name for path in found} == {"__init__.py", "a.py", "b.py"}
