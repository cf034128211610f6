"""Source `tar`: WebDataset tars; members with the same name up to its first dot are a sample.

    <key>.flac | .wav | .mp3 | .ogg | .opus | .m4a     the recording
    <key>.json                      an object, one key of which holds the labels: a list or text
    <key>.cls                       or the number of a class
    <key>.txt                       or labels as text

The members of a sample need not be adjacent, and may be sparse (`tar -S`). Nothing is unpacked:
members are read in place, so the tar must not be compressed.
"""

import json
import logging
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from pipeline.corpus.clips.segments import check_labels
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.params import TarParams
from pipeline.corpus.sources.source import too_large
from pipeline.corpus.sources.whole_recordings import MultiRecordingFiles, check_id

logger = logging.getLogger(__name__)

AUDIO = {"aac", "flac", "m4a", "mp3", "oga", "ogg", "opus", "wav"}
LABELS = ("json", "cls", "txt")  # the first one present counts
MAX_LABELS = 1_000_000  # bytes of such a member; more are not labels
BLOCK = 512  # bytes; a tar consists of such blocks and ends with one of zeros


class Location(NamedTuple):
    """Where a recording is, or why there is none."""

    path: str
    offset: int
    size: int  # bytes
    sparse: list[tuple[int, int]] | None  # (offset, size) of what is stored, if it has holes
    fault: UnavailableError | None


@dataclass(slots=True)
class Sample:
    """The members of a tar with the same key."""

    audio: tarfile.TarInfo | None = None
    labels: tuple[str, bytes] = ("", b"")  # suffix and content of the member with the labels
    fault: UnavailableError | None = None  # of that member


class Tar(MultiRecordingFiles[Location]):
    """See `source.Container`."""

    def __init__(self, params: TarParams) -> None:
        super().__init__("tar", params.path, {".tar"}, params.segments)
        self._label_key = params.label_key
        self._id_key = params.id_key

    def _recordings(self) -> Iterator[tuple[str, str, Location]]:
        is_labelled, example = False, b""  # a JSON
        for path in self._files:
            for key, sample in read_samples(path).items():
                try:
                    recording = self._recording(path, key, sample)
                except UnavailableError as fault:
                    yield key, "", Location(str(path), 0, 0, None, fault)
                else:
                    is_labelled = is_labelled or bool(recording[1])
                    example = sample.labels[1] if sample.labels[0] == "json" else example
                    yield recording
        if example and not is_labelled:
            logger.warning(
                "No clip has labels: no .json has %r (sources.tar.label_key). Keys of one: %s",
                *(self._label_key, ", ".join(json.loads(example))),
            )

    def _recording(self, path: Path, key: str, sample: Sample) -> tuple[str, str, Location]:
        if sample.audio is None:
            raise UnavailableError("no_audio", "the tar holds no audio file of this name")
        if sample.fault:
            raise sample.fault
        try:
            recording_id = read_id(*sample.labels, self._id_key) if self._id_key else key
            labels = read_labels(*sample.labels, self._label_key)
            check_labels(recording_id, labels)
        except ValueError as error:
            reason = f"its labels cannot be read: {error}"
            raise UnavailableError("corrupt", reason) from error
        audio: Any = sample.audio  # typeshed lacks `sparse`
        location = Location(str(path), audio.offset_data, audio.size, audio.sparse, None)
        return recording_id, labels, location

    def _contents(
        self, found: Sequence[tuple[str, Location]], max_bytes: float
    ) -> Iterator[bytes | UnavailableError]:
        for path, in_file in groupby(found, key=lambda item: item[1].path):
            with open(path, "rb") as file:
                for recording_id, location in in_file:
                    if location.fault or location.size <= max_bytes:
                        yield location.fault or read_member(file, location)
                    else:
                        name = f"{recording_id!r} of {path}"
                        yield too_large(name, location.size, max_bytes)


def read_member(file: BinaryIO, location: Location) -> bytes | UnavailableError:
    """Return the content of a member; the holes of a sparse one are zeros."""
    if location.sparse is None:
        file.seek(location.offset)
        return file.read(location.size)
    member: Any = tarfile.TarInfo()
    member.offset_data, member.size = location.offset, location.size
    member.sparse = location.sparse
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            content = tar.extractfile(member)
            return content.read() if content else b""
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        return UnavailableError("corrupt", f"its sparse member is damaged: {error}")


def read_samples(path: Path) -> dict[str, Sample]:
    """Return the samples of a tar by key.

    Raises:
        ValueError: it is damaged or compressed, or a member leads out of its folder or is repeated.
    """
    samples: dict[str, Sample] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isdir():
                    _add(samples, member, tar, path)
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged, or not a tar file ({error}). Fetch it again."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    return samples


def _add(
    samples: dict[str, Sample], member: tarfile.TarInfo, tar: tarfile.TarFile, path: Path
) -> None:
    check_id(member.name)
    if not member.isreg():
        raise ValueError(f"member {member.name!r} is a link or device; only files are read")
    name = PurePosixPath(member.name)
    stem, _, suffix = name.name.partition(".")
    kind = suffix.lower().rpartition(".")[2]
    sample = samples.setdefault(str(name.with_name(stem)) if stem else str(name), Sample())
    if kind in AUDIO:
        if sample.audio is not None:
            raise ValueError(f"{member.name!r} and {sample.audio.name!r} have the same id")
        sample.audio = member
    elif kind in LABELS and LABELS.index(kind) <= LABELS.index(sample.labels[0] or LABELS[-1]):
        content = tar.extractfile(member) if member.size <= MAX_LABELS else None
        sample.labels = kind, content.read() if content else b""
        sample.fault = None if content else too_many_labels(path, member)


def _check_end(path: Path, offset: int) -> None:
    """Stop if something other than a member or the end follows; tarfile would ignore it."""
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read(BLOCK)
    if any(rest) or not rest:
        raise ValueError(f"it is damaged at byte {offset}: neither a member nor the end follows")


def too_many_labels(path: Path, member: tarfile.TarInfo) -> UnavailableError:
    """Return why a member with labels is not read."""
    reason = f"{member.name!r} of {path} has {member.size:,} bytes, too many for labels"
    return UnavailableError("too_large", f"{reason} (at most {MAX_LABELS:,})")


def read_labels(kind: str, content: bytes, label_key: str) -> str:
    """Return the labels in a member, comma-joined; "" if there is no such member.

    Raises:
        ValueError: the content does not match the suffix.
    """
    text = content.decode("utf-8-sig").strip()
    if kind == "cls":
        return str(int(text))
    if kind != "json":
        return " ".join(text.split())
    return join_labels(_read_json(text).get(label_key, ""))


def read_id(kind: str, content: bytes, id_key: str) -> str:
    """Return the id of a recording in its JSON.

    Raises:
        ValueError: there is no JSON, or it has no such key.
    """
    values = _read_json(content.decode("utf-8-sig")) if kind == "json" else {}
    if id_key not in values:
        raise ValueError(f"there is no .json with the key {id_key!r} (sources.tar.id_key)")
    return str(values[id_key])


def _read_json(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, got {text[:80]!r}")
    return values


def join_labels(labels: object) -> str:
    """Return one or several labels comma-joined.

    A comma inside one of several becomes a semicolon: "Male speech, man speaking" is one label.
    """
    if isinstance(labels, Iterable) and not isinstance(labels, str):
        return ",".join(str(label).strip().replace(",", ";") for label in labels)
    return "" if labels is None else str(labels).strip()
