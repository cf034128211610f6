"""Nothing that may come from a remote is unpickled or run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")])
# What runs code that a file or a text contains, by the last part of its name.
RUNS_CODE = {"Unpickler", "read_pickle", "unsafe_load", "eval", "exec", "load_module"}
NEEDS_OPTION = {"torch.load": "weights_only=True"}


def code_runners(text: str) -> list[str]:
    """Calls in a module that would run code out of a file."""
    result = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve"):
            result += [alias.name for alias in node.names if alias.name != "dumps"]
        if isinstance(node, ast.Import):
            result += [alias.name for alias in node.names if alias.name in ("marshal", "shelve")]
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), [ast.unparse(k) for k in node.keywords]
        runs = name in ("pickle.load", "pickle.loads", "joblib.load", "eval", "exec")
        runs |= name.rpartition(".")[2] in RUNS_CODE and not name.endswith(".eval")
        runs |= "allow_pickle=True" in options
        runs |= name in NEEDS_OPTION and NEEDS_OPTION[name] not in options
        if runs:
            result.append(name)
    return result


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_code_out_of_a_file(path):
    assert not code_runners(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.load(file)",
        "pickle.loads(content)",
        "from pickle import loads",
        "class A(pickle.Unpickler): ...\npickle.Unpickler(file).load()",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pd.read_pickle(path)",
        "eval(text)",
    ],
)
def test_a_planted_one_is_seen(text):
    assert code_runners(text)
