"""The repository and its copies: `dvc exp run --queue` and `--temp` run in a copy of tracked files.

Data that are not tracked are only in the main repository. A relative path that a copy lacks means
that of the main repository (`locate`). What DVC looks at must lie in the copy itself, so that it
records the same hashes as in the main repository (`link_missing`).
"""

import os
from collections.abc import Iterator
from pathlib import Path


def root() -> Path:
    """Return the root of the repository: of the main one, also in a copy."""
    return Path(os.environ.get("DVC_ROOT", "."))


def in_copy() -> bool:
    """Return whether the current folder is a copy of the repository."""
    return not Path.cwd().samefile(root())


def locate(path: str) -> str:
    """Return a relative path as one in the main repository if only that has it.

    Of a template, the folder above its first placeholder decides.
    """
    folder = Path(path if "{" not in path else os.path.dirname(path[: path.index("{")]))
    if folder.exists() or not (root() / folder).exists():
        return path
    return os.path.join(root(), path)


def link_missing(folder: Path) -> None:
    """Link what the main repository has in a folder, and this copy of it lacks, into the copy.

    Folders are made and files linked one by one, since DVC does not follow links to folders. What
    `dvc add` tracks is left as DVC has checked it out.
    """
    if in_copy() and (root() / folder).is_dir():
        _link_entries((root() / folder).absolute(), folder)


def _link_entries(origin: Path, copy: Path) -> None:
    copy.mkdir(parents=True, exist_ok=True)
    for entry in os.scandir(origin):
        target = copy / entry.name
        checked_out = target.exists() and target.with_name(f"{entry.name}.dvc").exists()
        if entry.is_dir(follow_symlinks=False) and not target.is_symlink():
            if not checked_out:
                _link_entries(origin / entry.name, target)
        elif not os.path.lexists(target):
            target.symlink_to(entry.path)


def refuse_dangling_links(folder: Path) -> None:
    """Stop at a link without a target, of which DVC says only `[Errno 2]`.

    Raises:
        FileNotFoundError: names the link and its target.
    """
    for path in _files(folder):
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(
                f"{path} is a link to {path.resolve()}, which does not exist. DVC cannot track "
                f"{folder} with it: restore the target, or remove the link."
            )


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
