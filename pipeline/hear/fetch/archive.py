"""Unpack archives of HEAR tasks to the sample rate of the front end in one pass.

An archive is a tar file, compressed or not, with `tasks/<task>/` laid out as in
`pipeline.hear.tasks.task`. Its audio is resampled on the fly, so the 48 kHz files of a large task
need no disk space.
"""

import lzma
import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pipeline.hear.tasks.audio import publish_clip
from pipeline.hear.tasks.task import METADATA, VOCABULARY, Task, read_task

DAMAGED = (tarfile.TarError, EOFError, KeyError, zlib.error, lzma.LZMAError)
LISTS = (".json", ".csv")  # suffixes of what a task has beside audio
LONGEST_NAME = 255  # bytes, on all usual file systems

Faults = dict[Path, ValueError]  # clip -> its error


class TooLargeError(tarfile.TarError):
    """A member has more bytes than may be read; a small archive may claim to hold a huge file."""


def unpack_task(archive: Path, name: str, folder: Path, sample_rate: int, max_bytes: float) -> Task:
    """Write a task into an existing folder, with its audio at `sample_rate`, and check it.

    Files that no split lists are skipped, and files of more than `max_bytes` are not read.

    Raises:
        FileNotFoundError: the archive lacks the task or one of its files.
        ValueError: the archive is damaged, would write outside the folder, has audio of several
            sample rates, or a file that is too large or cannot be written; or the task is invalid.
    """
    faults: Faults = {}
    rates: set[str] = set()
    with (
        archive.open("rb") as file,
        tqdm.wrapattr(
            file, "read", total=archive.stat().st_size, desc=name, disable=None
        ) as progress,
    ):
        try:
            with tarfile.open(fileobj=progress) as tar:
                for member in tar:
                    parts = _task_path(member, name)
                    if parts and not member.isdir():
                        rates |= _write_member(
                            tar, member, parts, folder, sample_rate, max_bytes, faults
                        )
        except DAMAGED as error:
            raise ValueError(
                f"{archive} cannot be unpacked: {error}. If you trust its contents, unpack it "
                "yourself and set hear.source = folder."
            ) from error
    if len(rates) != 1:
        raise ValueError(
            f"{archive} has audio of {', '.join(sorted(rates)) or 'no'} Hz in tasks/{name}, "
            "expected one sample rate. Unpack it and set hear.source = folder."
        )
    task = read_task(folder)
    _remove_unlisted(task, sample_rate, faults, f"{archive}: tasks/{name}/{rates.pop()}")
    return task


def _task_path(member: tarfile.TarInfo, name: str) -> tuple[str, ...]:
    """Return the parts of a member's path in the task's folder; () if it belongs elsewhere.

    Refuses what tarfile's filter `data` refuses, which Python has only since 3.11.4.

    Raises:
        tarfile.TarError: the path or the target of a link is outside the archive's tree, or the
            member is not a file, folder or link.
    """
    path = PurePosixPath(member.name)
    base = path.parent if member.issym() else PurePosixPath()
    link = os.path.normpath(base / member.linkname) if member.linkname else ""
    if "\0" in member.name or max(map(len, map(os.fsencode, path.parts)), default=0) > LONGEST_NAME:
        raise tarfile.TarError(f"{member.name!r} cannot be the name of a file")
    for target in (member.name, link):
        if target.startswith("/") or ".." in PurePosixPath(target).parts:
            raise tarfile.TarError(f"{member.name!r} points outside the archive")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise tarfile.TarError(f"{member.name!r} is a device or pipe")
    tasks = ("tasks", name)
    return path.parts[2:] if path.parts[:2] == tasks else ()


def _write_member(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    parts: tuple[str, ...],
    folder: Path,
    sample_rate: int,
    max_bytes: float,
    faults: Faults,
) -> set[str]:
    """Write one file; return the sample rate in its path if it is audio.

    Invalid audio is only recorded, since the lists of clips may come later in the archive.
    """
    is_audio = len(parts) == 3 and parts[0].isdecimal()
    if len(parts) == 1 and parts[0].endswith(LISTS):
        (folder / parts[0]).write_bytes(_read(tar, member, max_bytes))
    if not is_audio:
        return set()
    target = folder.joinpath(str(sample_rate), *parts[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        publish_clip(_read(tar, member, max_bytes), member.name, target, sample_rate)
    except (ValueError, TooLargeError) as error:
        faults[target] = ValueError(str(error))
    return {parts[0]}


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: float) -> bytes:
    """Return the content of a file, or of the one that a link leads to."""
    try:
        file = tar.extractfile(member)
    except RecursionError:
        raise tarfile.TarError(f"{member.name!r} is a link that leads to itself") from None
    if file is None:
        return b""
    size = file.seek(0, os.SEEK_END)
    if size > max_bytes:
        raise TooLargeError(
            f"{os.path.basename(str(tar.name))}: {member.name!r} has {size:,} bytes, more than "
            f"{max_bytes / 1e6:g} MB (hear.max_file_mb)"
        )
    file.seek(0)
    return file.read()


def _remove_unlisted(task: Task, sample_rate: int, faults: Faults, source: str) -> None:
    """Remove files that no split lists.

    Raises:
        FileNotFoundError: a listed clip is missing.
        ValueError: a listed clip is invalid.
    """
    names = (METADATA, VOCABULARY, *(f"{split}.json" for split in task.metadata.splits))
    listed = {task.folder / name for name in names}
    for split, files in task.labels.items():
        clips = {name: task.audio(sample_rate, split) / name for name in files}
        for name, path in clips.items():
            if path in faults:
                raise faults[path]
            if not path.is_file():
                raise FileNotFoundError(f"{source}/{split}/{name} is missing, but listed.")
        listed |= set(clips.values())
    for path in [path for path in task.folder.rglob("*") if path.is_file()]:
        if path not in listed:
            path.unlink()
