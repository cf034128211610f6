"""The pipeline definition: every stage lists exactly the code, parameters and data it uses."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.core.params import read
from pipeline.hear.params import BASELINES, TASK_SOURCES, TRAINED

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages")


def stage_definitions():
    """Name -> definition, the body of a foreach or matrix stage as one."""
    stages = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    return {name: {**body, **body.get("do", {})} for name, body in stages.items()}


STAGES = stage_definitions()


def module_file(name: str) -> Path | None:
    """File of a module of ours, relative to the root, or None for others' modules."""
    path = Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).exists() and path.parts[0] in PACKAGES:
            return candidate
    return None


def is_docstring_only(path: Path) -> bool:
    """Whether a module cannot change what a stage does: most `__init__` files."""
    body = ast.parse((ROOT / path).read_text()).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def imports(path: Path) -> set[Path]:
    """Files of ours that a module imports, the __init__ of their packages included."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    names |= {".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 1)}
    return {file for name in names if (file := module_file(name))}


# Templates and tables of the library, which a module or another template names.
ASSETS = [
    path.relative_to(ROOT)
    for path in sorted((ROOT / "pipeline").rglob("*"))
    if path.suffix in (".j2", ".csv", ".json", ".txt")
]


def assets(path: Path) -> set[Path]:
    """Assets whose file names a module or a template contains."""
    text = (ROOT / path).read_text()
    return {asset for asset in ASSETS if re.search(rf'["\']{re.escape(asset.name)}["\']', text)}


def closure(script: Path) -> set[Path]:
    """A script and all files of ours that it needs, directly or not."""
    found, queue = set(), {script, script.parent / "__init__.py"}
    while queue:
        found |= queue
        modules = {path for path in queue if path.suffix == ".py"}
        needed = {file for path in modules for file in imports(path)}
        queue = needed.union(*map(assets, queue)) - found
    needed = {path for path in found if path.suffix != ".py" or not is_docstring_only(path)}
    return needed - {Path("stages/__init__.py")}  # which only handles signals and imports that fail


def import_closure(script: Path) -> set[Path]:
    """The modules among the files that a script needs."""
    return {path for path in closure(script) if path.suffix == ".py"}


def library_readers(script: Path) -> list[ast.FunctionDef]:
    """Functions of the library that a script passes its `stage`, to read parameters with."""
    tree = ast.parse((ROOT / script).read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = []
    for name in called_with_stage(tree) - own:
        module, function = imported[name]
        body = ast.parse((ROOT / module_file(module)).read_text()).body
        (reader,) = (n for n in body if isinstance(n, ast.FunctionDef) and n.name == function)
        assert reader.args.args[0].arg == "stage", f"{name} must name its parameter `stage`"
        assert not called_with_stage(reader), f"{name} must read the parameters itself"
        found.append(reader)
    return found


def called_with_stage(tree: ast.AST) -> set[str]:
    """What is called with `stage` as an argument."""
    return {
        ast.unparse(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]
        if ast.unparse(argument) == "stage"
    }


def loaded_keys(script: Path) -> set[str]:
    """Keys that a script reads with stage.load, .value and .record, spelt as in dvc.yaml.

    In the key of one value, `{source}` stands for another that was read into `source`.
    """
    trees = [ast.parse((ROOT / script).read_text()), *library_readers(script)]
    return set().union(*map(keys_read, trees))


def keys_read(tree: ast.AST) -> set[str]:
    """Keys that a module or a function reads."""
    keys, read_into = set(), {}
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("stage.value("):
            read_into[ast.unparse(node.targets[0])] = ast.literal_eval(node.value.args[0])
    for node in nodes:
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("load", "value", "record")
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "stage"
        ):
            spelt = node.args if node.func.attr == "record" else node.args[:1]
            for key in (ast.unparse(arg).strip("'").removeprefix("f'") for arg in spelt):
                keys.add(
                    re.sub(r"{(\w+)}", lambda name: f"${{{read_into.get(name[1], name[1])}}}", key)
                )
    return keys


def code_dependencies(name: str) -> set[Path]:
    """Files and folders of code that a stage depends on."""
    return {Path(dep) for dep in STAGES[name]["deps"] if dep.startswith(("pipeline", "stages"))}


def missing(listed: set[Path], needed: set[Path]) -> set[Path]:
    """Needed files that neither are listed nor lie in a listed folder."""
    return {path for path in needed if not listed & {path, *path.parents}}


def unused(listed: set[Path], needed: set[Path]) -> set[Path]:
    """Listed files and folders without which nothing needed would be missing."""
    return {path for path in listed if missing(listed - {path}, needed) == missing(listed, needed)}


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_hold_all_that_a_stage_needs_and_nothing_else(name):
    listed, needed = code_dependencies(name), closure(Path("stages", f"{name}.py"))
    assert all((ROOT / path).exists() for path in listed)
    assert not missing(listed, needed)
    assert not unused(listed, needed)


def test_a_template_or_table_that_is_not_listed_is_missed():
    needed = closure(Path("stages/report.py"))
    assert set(ASSETS) & needed
    for asset in set(ASSETS) & needed:
        listed = code_dependencies("report") - {asset, *asset.parents}
        assert asset in missing(listed, needed), asset


@pytest.mark.parametrize("name", [name for name in STAGES if name != "validate"])
def test_params_are_exactly_those_that_the_stage_reads(name):
    assert set(STAGES[name].get("params", [])) == loaded_keys(Path("stages", f"{name}.py"))


def test_validate_reads_the_whole_file_and_comes_before_every_first_stage():
    assert "params.yaml" in STAGES["validate"]["deps"]
    outputs = made_by_stages() | {"reports/leaks"}
    for name, body in STAGES.items():
        assert name == "validate" or outputs & {generic(dep) for dep in body["deps"]}, name


def produced():
    """(path, stage) of every output and metric."""
    for name, body in STAGES.items():
        for out in [*body.get("outs", []), *body.get("metrics", []), *body.get("plots", [])]:
            yield (next(iter(out)) if isinstance(out, dict) else out), name


def generic(path: str) -> str:
    """The path with every placeholder spelt alike."""
    for name in ("${item.task}", "${item}"):
        path = path.replace(name, "<task>")
    return path.replace("${item.model}", "<model>")


def made_by_stages() -> set[str]:
    """Every output; data/<model> stands for that of every model."""
    return {generic(path) for path, _ in produced()} | {"data/<model>"}


def test_a_data_dependency_is_exactly_another_stages_output_or_tracked_by_git():
    outputs = made_by_stages()
    tracked = {"data/${source}", "data/${hear.source}/tasks", "reports/scores"}
    tracked |= {"data/${source}/labels.csv", "reports/probe", "reports/leaks"}
    for name, body in STAGES.items():
        for dep in body["deps"]:
            if dep.startswith(("data/", "reports/")):
                assert generic(dep) in outputs | tracked, f"{name}: {dep}"


@pytest.mark.parametrize(("stage", "models"), [("pretrain", TRAINED), ("baselines", BASELINES)])
def test_every_model_of_the_evaluation_is_an_output(stage, models):
    assert {f"data/{model}" for model in models} <= {str(out) for out in STAGES[stage]["outs"]}
    for name in ("embed", "score"):
        assert STAGES[name]["matrix"]["model"] == "${hear.models}"


@pytest.mark.parametrize("source", TASK_SOURCES)
def test_every_source_of_tasks_has_its_folder_in_git(source):
    """Which DVC looks for even if the tasks are elsewhere."""
    command = ["git", "ls-files", f"data/{source}/tasks"]
    assert subprocess.check_output(command, cwd=ROOT, text=True)


@pytest.mark.parametrize("name", STAGES)
def test_commands_run_modules(name):
    assert STAGES[name]["cmd"].startswith(f"python -m stages.{name}")


@pytest.mark.parametrize("encoder", ["audiontt", "vitc", "vit"])
def test_every_listed_parameter_exists(encoder):
    content = read(ROOT / "params.yaml")
    for name, body in STAGES.items():
        for key in body.get("params", []):
            value = content
            key = key.replace("${encoder}", encoder)
            for part in re.sub(r"\${(hear\.)?source}", "sample", key).split("."):
                assert part in value, f"{name}: {key}"
                value = value[part]


def test_heavy_outputs_are_cached_so_that_a_remote_can_restore_them():
    small = {"reports/throughput.csv": {"cache": False}}
    for name in ("download", "resample", "logmel", "fingerprint", "pretrain", "embed"):
        assert all(isinstance(out, str) or out == small for out in STAGES[name]["outs"]), name
