"""Files and folders: checksums, links, where there is space, how many may be open."""

import errno
import hashlib
import os
import resource
import shutil
from pathlib import Path

OPEN_FILES = os.strerror(errno.EMFILE)  # also the beginning of ENFILE's text


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


def open_files_hint() -> str:
    """Return what limits the number of open files, and what to do about it."""
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"This shell allows a process {limit} open files (`ulimit -n`)."
    may_rise = highest == resource.RLIM_INFINITY or highest > limit
    wanted = 4096 if highest == resource.RLIM_INFINITY else min(highest, 4096)
    remedy = f"Raise it (`ulimit -n {wanted}`)" if may_rise else "Use a shell that allows more"
    return f"{text} {remedy}, or lower compute.connections and compute.workers; 1024 suffice."
