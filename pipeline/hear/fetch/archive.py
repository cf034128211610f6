"""Archives of HEAR tasks: unpacked to the sample rate of the front end in one pass.

An archive is a tar file, compressed or not, that holds `tasks/<task>/` with the files that
`hear_tasks` describes. Its audio goes straight from there through the resampler: the 48 kHz of a
large task need no place on the disk.
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

Faults = dict[Path, ValueError]  # clip -> what is wrong with it


def unpack_task(archive: Path, name: str, folder: Path, sample_rate: int) -> Task:
    """Write a task into an existing folder, its audio at `sample_rate`, and check it.

    Files that no split lists are left out.

    Raises:
        FileNotFoundError: the archive lacks the task or one of its files.
        ValueError: the archive is damaged, would write elsewhere, or has audio of two rates; or
            the task is faulty.
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
                    where = _task_path(member, name)
                    if where and not member.isdir():
                        rates |= _write_member(tar, member, where, folder, sample_rate, faults)
        except DAMAGED as error:
            raise ValueError(
                f"{archive} cannot be unpacked: {error}. If its contents can be trusted, unpack it "
                "by hand and use hear.source = folder."
            ) from error
    if len(rates) != 1:
        raise ValueError(
            f"{archive} has audio of {', '.join(sorted(rates)) or 'no'} Hz in tasks/{name}, "
            "expected one sample rate. Unpack it and use hear.source = folder."
        )
    task = read_task(folder)
    _remove_unlisted(task, sample_rate, faults, f"{archive}: tasks/{name}/{rates.pop()}")
    return task


def _task_path(member: tarfile.TarInfo, name: str) -> tuple[str, ...]:
    """Return a member's path in the task's folder, () if it is none of the task's.

    What is refused is what tarfile's filter `data` refuses, which Python has since 3.11.4 only.

    Raises:
        tarfile.TarError: it or the target of a link is outside the archive's own tree, or it is no
            file, folder or link.
    """
    path = PurePosixPath(member.name)
    base = path.parent if member.issym() else PurePosixPath()
    link = os.path.normpath(base / member.linkname) if member.linkname else ""
    for place in (member.name, link):
        if place.startswith("/") or ".." in PurePosixPath(place).parts:
            raise tarfile.TarError(f"{member.name!r} leads out of the archive")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise tarfile.TarError(f"{member.name!r} is a device or pipe")
    tasks = ("tasks", name)
    return path.parts[2:] if path.parts[:2] == tasks else ()


def _write_member(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    where: tuple[str, ...],
    folder: Path,
    sample_rate: int,
    faults: Faults,
) -> set[str]:
    """Write one file; return the sample rate by its place if it is audio.

    Faulty audio is no error yet, since the lists of the clips may stand behind it.
    """
    is_audio = len(where) == 3 and where[0].isdecimal()
    if len(where) != 1 and not is_audio:
        return set()
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if not is_audio:
        (folder / where[0]).write_bytes(content)
        return set()
    target = folder.joinpath(str(sample_rate), *where[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        publish_clip(content, member.name, target, sample_rate)
    except ValueError as error:
        faults[target] = error
    return {where[0]}


def _remove_unlisted(task: Task, sample_rate: int, faults: Faults, source: str) -> None:
    """Remove what no split lists.

    Raises:
        FileNotFoundError: a listed clip is missing.
        ValueError: one is faulty.
    """
    names = (METADATA, VOCABULARY, *(f"{split}.json" for split in task.metadata.splits))
    wanted = {task.folder / name for name in names}
    for split, files in task.labels.items():
        clips = {name: task.audio(sample_rate, split) / name for name in files}
        for name, path in clips.items():
            if path in faults:
                raise faults[path]
            if not path.is_file():
                raise FileNotFoundError(f"{source}/{split}/{name} is missing, but listed.")
        wanted |= set(clips.values())
    for path in [path for path in task.folder.rglob("*") if path.is_file()]:
        if path not in wanted:
            path.unlink()
