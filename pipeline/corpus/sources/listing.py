"""What a container holds: its files, the ids of its recordings, the clips wanted of them."""

import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import filterfalse
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.corpus import ledger
from pipeline.corpus.segments import Segment, check_labels, read_text

logger = logging.getLogger(__name__)

SHOWN = 10  # faults of one kind that a message names
# Control characters, ends of lines, and bytes that are no UTF-8.
UNLISTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:[/\\]|(.*[/\\])?\.\.([/\\]|$)")  # absolute, or with a `..`

Place = TypeVar("Place", bound=tuple[Any, ...])


class Packed(ABC, Generic[Place]):
    """Files that hold many recordings each, as a part of a `Container`.

    Args:
        path, suffixes, key: see `files_of`.
    """

    def __init__(self, path: str, suffixes: Collection[str], key: str) -> None:
        self._key = key
        self._files = files_of(Path(path), suffixes, key)
        self._places: dict[str, Place] = {}

    def files(self) -> list[Path]:
        """See `source.Container`."""
        return self._files

    def segments(self) -> list[Segment]:
        """List the recordings of all files in their order."""
        segments, self._places = whole(self._found(), self._key)
        return segments

    @abstractmethod
    def _found(self) -> Iterable[tuple[str, str, Place]]:
        """Return id, labels and place of each recording."""


def files_of(path: Path, suffixes: Collection[str], key: str) -> list[Path]:
    """Return the file `path`, or the files of a tree that have one of the suffixes, by name.

    Hidden files and folders are left out; others, and pipes and devices, are counted in the log.

    Args:
        path: a file or folder.
        suffixes: in small letters, with the dot.
        key: the parameter that names `path`, for messages.

    Raises:
        FileNotFoundError: there is nothing at `path`, or nothing with such a suffix.
        ValueError: a link leads to a folder that is listed already.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no {path}; put the data there, or correct {key} in params.yaml."
        )
    found = list(_walk(path))
    wanted = [f for f in found if f.suffix.lower() in suffixes and not _is_special(f)]
    if not wanted:
        raise FileNotFoundError(
            f"{path} holds no file that ends in {', '.join(sorted(suffixes))}; put the data there, "
            f"or correct {key} in params.yaml."
        )
    if len(found) > len(wanted):
        ignored = len(found) - len(wanted)
        why = "since their names say other content, or they are pipes or devices"
        logger.info("%s: %d files are not read, %s", path, ignored, why)
    return sorted(wanted)


def _is_special(file: Path) -> bool:
    """Return whether it is a pipe or device, which may never end; a link to nothing is none."""
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


def fingerprint(files: Iterable[Path], clips: str) -> str:
    """Return what changes when a file is added, removed or written anew: names, sizes, times.

    Args:
        files: of the source, in order.
        clips: path of the list of clips that are wanted, "" for all.

    Raises:
        FileNotFoundError: there is no such list.
    """
    digest = hashlib.sha256("\n".join(ids_in(clips)).encode())
    for file in files:
        digest.update(os.fsencode(f"\n{file}\n{_state(file)}"))
    return digest.hexdigest()


def _state(file: Path) -> str:
    try:
        state = file.stat()
    except FileNotFoundError:  # a link that leads nowhere
        return "missing"
    return f"{state.st_size} {state.st_mtime_ns}"


def check_unchanged(files: Iterable[Path], clips: str, before: str) -> None:
    """Stop when files were written while they were read.

    Raises:
        RuntimeError: the fingerprint is another than before.
    """
    if fingerprint(files, clips) != before:
        raise RuntimeError(
            "The files of the source changed while they were read, so that the clips may be of "
            "different versions. Run it again when nothing writes to them."
        )


def check_id(recording_id: str) -> None:
    """Stop at an id that cannot be the name of a clip in a tar file.

    Raises:
        ValueError: it is empty, an absolute path, has a `..`, or holds line ends, other control
            characters, or bytes that are no UTF-8.
    """
    if found := UNLISTABLE.search(recording_id):
        raise ValueError(
            f"id {recording_id!r} holds {found[0]!r}, a line end, control character or no text"
        )
    if OUTSIDE.match(recording_id):
        raise ValueError(
            f"{recording_id!r} leads out of its folder: absolute paths and '..' are refused"
        )
    if not recording_id.strip("./ "):
        raise ValueError(f"id {recording_id!r} is no name")


def whole(
    found: Iterable[tuple[str, str, Place]], key: str
) -> tuple[list[Segment], dict[str, Place]]:
    """Return (id, labels, place) of recordings as one segment each, and the places by id.

    Args:
        found: in order; a place is a tuple that begins with the path of its file.
        key: the parameter that names the data, for messages.

    Raises:
        ValueError: nothing was found, an id or its labels are broken, or an id stands twice; the
            message names them.
    """
    segments: list[Segment] = []
    places: dict[str, Place] = {}
    errors = []
    for recording_id, labels, place in found:
        try:
            check_id(recording_id)
            check_labels(recording_id, labels)
            first = places.setdefault(recording_id, place)
            if first is not place:
                raise ValueError(f"id {recording_id!r} is in {first[0]} already")
        except ValueError as error:
            errors.append(f"  {place[0]}: {error}")
        else:
            segments.append(Segment(len(segments), recording_id, 0.0, 0.0, labels))
    if errors:
        title = f"{len(errors)} recordings cannot be told apart or stored; mend or remove them."
        raise ValueError("\n".join([title, *_first(errors)]))
    if not segments:
        raise ValueError(f"There is no recording in what {key} in params.yaml names.")
    return segments, places


def select(segments: Sequence[Segment], path: str) -> list[Segment]:
    """Return the segments that a list names; "" stands for all.

    Args:
        segments: all that the source has.
        path: file with the id of a clip or recording on each line, or a ledger.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is empty, or names what the source lacks.
    """
    if not path:
        return list(segments)
    wanted = dict.fromkeys(ids_in(path))
    if not wanted:
        raise ValueError(f"{path} lists no clips; expected one id a line.")
    kept: list[Segment] = []
    found: set[str] = set()
    for segment in segments:
        names = {segment.clip_id, segment.recording_id} & wanted.keys()
        if names:
            found |= names
            kept.append(replace(segment, row=len(kept)))
    unknown = [f"  {line}" for line in wanted if line not in found]
    if unknown:
        title = f"{path} lists {len(unknown)} clips that the source has not; remove them:"
        raise ValueError("\n".join([title, *_first(unknown)]))
    return kept


def ids_in(path: str) -> list[str]:
    """Return the ids in a list of clips, or of the usable clips in a ledger; none without one."""
    if not path:
        return []
    try:
        lines = read_text(Path(path)).splitlines()
        if lines and lines[0] == ",".join(ledger.COLUMNS):
            return [row.clip_id for row in ledger.read(Path(path)) if row.ok]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no list of clips {path}; correct `clips` of the source in params.yaml."
        ) from None
    return [line.strip() for line in lines if line.strip()]


def _first(lines: list[str]) -> list[str]:
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more
