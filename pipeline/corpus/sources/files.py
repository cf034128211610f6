"""The files of a container: listing them, and noticing that they have changed."""

import hashlib
import logging
import os
from collections.abc import Collection, Iterable
from itertools import filterfalse
from pathlib import Path

from pipeline.corpus.sources.selection import ids_in

logger = logging.getLogger(__name__)


def list_files(path: Path, suffixes: Collection[str], key: str) -> list[Path]:
    """Return the file `path`, or the files in a tree that have one of the suffixes, sorted.

    Hidden files and folders are ignored; the number of other files ignored is logged.

    Args:
        path: a file or folder.
        suffixes: in lower case, with the dot.
        key: the parameter that names `path`, for messages.

    Raises:
        FileNotFoundError: there is nothing at `path`, or nothing with such a suffix.
        ValueError: a link leads to a folder that has been listed already.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no {path}; put the data there, or correct {key} in params.yaml."
        )
    files = list(_walk(path))
    matching = [f for f in files if f.suffix.lower() in suffixes and not _is_special(f)]
    if not matching:
        raise FileNotFoundError(
            f"{path} holds no file that ends in {', '.join(sorted(suffixes))}; put the data there, "
            f"or correct {key} in params.yaml."
        )
    if ignored := len(files) - len(matching):
        why = "they have other suffixes, or are pipes or devices"
        logger.info("%s: ignoring %d files: %s", path, ignored, why)
    return sorted(matching)


def _is_special(file: Path) -> bool:
    """Return whether a file is a pipe or device, which may never end; a dangling link is not."""
    return not file.is_file() and file.exists()


def _walk(folder: Path) -> Iterable[Path]:
    seen = set()
    for root, folders, names in os.walk(folder, onerror=_stop, followlinks=True):
        folders[:] = filterfalse(_is_hidden, folders)
        real = os.path.realpath(root)
        if real in seen:
            raise ValueError(f"{root} is a link to {real}, which is listed already. Remove it.")
        seen.add(real)
        yield from (Path(root, name) for name in filterfalse(_is_hidden, names))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _stop(error: OSError) -> None:
    raise error


def source_state(files: Iterable[Path], clips: str) -> str:
    """Return a hash of the names, sizes and times of a source's files, and of a list of clips.

    Args:
        files: in order.
        clips: path of the list of selected clips, "" for all.

    Raises:
        FileNotFoundError: there is no such list.
    """
    digest = hashlib.sha256("\n".join(ids_in(clips)).encode())
    for file in files:
        digest.update(os.fsencode(f"\n{file}\n{_file_state(file)}"))
    return digest.hexdigest()


def _file_state(file: Path) -> str:
    try:
        state = file.stat()
    except FileNotFoundError:  # a dangling link
        return "missing"
    return f"{state.st_size} {state.st_mtime_ns}"


def check_unchanged(files: Iterable[Path], clips: str, before: str) -> None:
    """Stop if files were written while they were read.

    Raises:
        RuntimeError: their state is no longer `before`.
    """
    if source_state(files, clips) != before:
        raise RuntimeError(
            "The files of the source changed while they were read, so the clips may be of "
            "different versions. Run it again when nothing writes to them."
        )
