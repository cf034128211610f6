"""Files and folders: checksums, links, and where there is space."""

import hashlib
import os
import shutil
from pathlib import Path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(path: Path, target: Path) -> None:
    """Link a file, or copy it where the file system has no hard links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def nearest_folder(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())


def free_bytes(path: Path) -> int:
    """Return the free space on the file system where a path is, or will be."""
    return shutil.disk_usage(nearest_folder(path)).free
