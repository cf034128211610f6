"""The README and docs/: links, commands, options and names of code that exist."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT): path.read_text() for path in PAGES}
MAX_LINES = 60  # of the README: one screen


def in_all_pages(pattern):
    """Parameters of a test: page and match, of every match in the pages."""
    return sorted({(page, m) for page, text in TEXTS.items() for m in re.findall(pattern, text)})


def names(path):
    """Functions and classes that a module defines, methods as Class.method."""
    tree = ast.parse(path.read_text())
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    methods = [
        f"{node.name}.{inner.name}"
        for node in definitions
        for inner in node.body
        if isinstance(node, ast.ClassDef) and isinstance(inner, ast.FunctionDef)
    ]
    return {*(node.name for node in definitions), *methods}


def anchor(heading):
    """A heading's address within its page, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_one_screen():
    assert len(TEXTS[Path("README.md")].splitlines()) <= MAX_LINES


@pytest.mark.parametrize(("page", "link"), in_all_pages(r"\]\(([^)]+)\)"))
def test_a_link_leads_somewhere(page, link):
    if link.startswith("https://"):
        return
    target, _, fragment = link.partition("#")
    path = (ROOT / page).parent / target if target else ROOT / page
    assert path.exists()
    if fragment:
        assert fragment in {anchor(h) for h in re.findall(r"(?m)^#+ (.*)$", path.read_text())}


@pytest.mark.parametrize(
    ("page", "module"),
    in_all_pages(r"(?:python -m|-m) ((?:pipeline|stages|dask|benchmarks)[\w.]*)"),
)
def test_a_command_is_a_module(page, module):
    assert importlib.util.find_spec(module)


@pytest.mark.parametrize(("page", "name"), in_all_pages(r"presets/([\w-]+)"))
def test_an_option_file_exists(page, name):
    assert (ROOT / "presets" / name).exists()


@pytest.mark.parametrize(("page", "key"), in_all_pages(r"-S '?([\w.]+)="))
def test_an_option_is_a_parameter(page, key):
    value = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    for part in key.split("."):
        value = value[part]


@pytest.mark.parametrize(
    ("page", "file"), in_all_pages(r"`((?:pipeline|stages|tests|data/sample|docs)/[\w/.]*)`")
)
def test_a_file_exists(page, file):
    assert (ROOT / file).exists()


@pytest.mark.parametrize(
    ("files", "listed"),
    re.findall(
        r"(?m)^\| [^|]+ \| (`pipeline/[^|]+) \| ([^|]+) \|$", TEXTS[Path("docs/development.md")]
    ),
)
def test_a_name_under_where_to_find_is_defined_in_its_file(files, listed):
    defined = set().union(*(names(ROOT / file) for file in re.findall(r"`([^`]+)`", files)))
    expected = set(re.findall(r"`([^`]+)`", listed))
    assert expected and expected <= defined
