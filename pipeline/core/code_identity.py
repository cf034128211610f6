"""What a piece of our code does, as one hash: for all work that is kept across runs.

Shards, training states and cached embeddings belong to the code that made them. It is identified by
the module that does the work and every module of ours that this imports, directly or not. Comments,
docstrings and layout do not count, so that editing them costs no work.
"""

import ast
import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "pipeline"


def code_identity(module: str, libraries: Iterable[str] = (), root: Path = ROOT) -> str:
    """Return the hash of a module, such as `pipeline.corpus.resample`, and of all that it imports.

    Args:
        libraries: distributions whose versions count too.
        root: folder that holds the package.
    """
    described = [f"{name} {version(name)}" for name in libraries]
    described += [_normalized(path) for path in sorted(import_closure(module, root))]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()


def import_closure(module: str, root: Path = ROOT) -> set[Path]:
    """Return the files of a module and of all modules of ours that it imports, directly or not."""
    found: set[Path] = set()
    queue = _files(module, root)
    while queue:
        found |= queue
        names = {name for path in queue for name in imported_names(path)}
        queue = {file for name in names for file in _files(name, root)} - found
    return found


def imported_names(path: Path) -> set[str]:
    """Return the dotted names that a file imports; some may be of classes or functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _files(name: str, root: Path) -> set[Path]:
    """Return the file of a module of ours, and the `__init__` of each package around it."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return set()
    packages = {root.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)}
    return {path for path in packages | {root.joinpath(*parts).with_suffix(".py")} if path.exists()}


def _normalized(path: Path) -> str:
    """Return the syntax tree of a file as text, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_docstring(s)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
