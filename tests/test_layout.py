"""The shape of the code: small modules and functions, packages that say what they hold."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "pipeline").rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))
PACKAGES = [path for path in MODULES if path.name == "__init__.py"]
MAX_MODULE, MAX_STAGE, MAX_FUNCTION = 300, 80, 40  # lines
KERNELS = ("audiontt_kernels.py", "vit_kernels.py")  # which may be longer


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_fits_in_the_head(path):
    assert path.name in KERNELS or lines(path) <= MAX_MODULE


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_a_stage_is_thin(path):
    assert lines(path) <= MAX_STAGE


@pytest.mark.parametrize("path", [*MODULES, *STAGES], ids=name)
def test_a_function_fits_on_a_screen(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert path.name in KERNELS or not {k: n for k, n in long.items() if n > MAX_FUNCTION}


@pytest.mark.parametrize("path", PACKAGES, ids=name)
def test_a_package_says_what_lives_there(path):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(docstring) > 40
