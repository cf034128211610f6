"""Source `tar`: WebDataset tars; members with the same name up to its first dot are a sample.

    <key>.flac | .wav | .mp3 | .ogg | .opus | .m4a     the recording
    <key>.json                      an object, one key of which holds the labels: a list or text
    <key>.cls                       or the number of a class
    <key>.txt                       or labels as text

The members of a sample need not be adjacent. Nothing is unpacked: members are read in place, so the
tar must not be compressed.
"""

import json
import logging
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.corpus.clips.segments import Segment, check_labels
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.params import TarParams
from pipeline.corpus.sources.whole_recordings import MultiRecordingFiles, check_id

logger = logging.getLogger(__name__)

AUDIO = {"aac", "flac", "m4a", "mp3", "oga", "ogg", "opus", "wav"}
LABELS = ("json", "cls", "txt")  # the first one present counts
KEY = "sources.tar.path"
BLOCK = 512  # bytes; a tar consists of such blocks and ends with one of zeros


class Location(NamedTuple):
    """Where a recording is, or why there is none."""

    path: str
    offset: int
    size: int  # bytes
    fault: UnavailableError | None


@dataclass(slots=True)
class Sample:
    """The members of a tar with the same key."""

    audio: tarfile.TarInfo | None = None
    labels: tuple[str, bytes] = ("", b"")  # suffix and content of the member with the labels


class Tar(MultiRecordingFiles[Location]):
    """See `source.Container`."""

    def __init__(self, params: TarParams) -> None:
        super().__init__(params.path, {".tar"}, KEY)
        self._label_key = params.label_key

    def _recordings(self) -> Iterator[tuple[str, str, Location]]:
        is_labelled, example = False, b""  # a JSON
        for path in self._files:
            for key, sample in read_samples(path).items():
                if sample.audio is None:
                    fault = UnavailableError("no_audio", "the tar holds no audio file of this name")
                    yield key, "", Location(str(path), 0, 0, fault)
                    continue
                offset, size = sample.audio.offset_data, sample.audio.size
                try:
                    labels = read_labels(*sample.labels, self._label_key)
                    check_labels(key, labels)
                except ValueError as error:
                    fault = UnavailableError("corrupt", f"its labels cannot be read: {error}")
                    yield key, "", Location(str(path), 0, 0, fault)
                else:
                    is_labelled = is_labelled or bool(labels)
                    example = sample.labels[1] if sample.labels[0] == "json" else example
                    yield key, labels, Location(str(path), offset, size, None)
        if example and not is_labelled:
            logger.warning(
                "No clip has labels: no .json has %r (sources.tar.label_key). Keys of one: %s",
                *(self._label_key, ", ".join(json.loads(example))),
            )

    def contents(self, segments: Sequence[Segment]) -> Iterator[bytes | UnavailableError]:
        """See `source.Container`."""
        locations = [self._locations[segment.recording_id] for segment in segments]
        for path, in_file in groupby(locations, key=lambda location: location.path):
            with open(path, "rb") as file:
                for location in in_file:
                    file.seek(location.offset)
                    yield location.fault or file.read(location.size)


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
                    _add(samples, member, tar)
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged, or not a tar file ({error}). Fetch it again."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    return samples


def _add(samples: dict[str, Sample], member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
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
        content = tar.extractfile(member)
        sample.labels = kind, content.read() if content else b""


def _check_end(path: Path, offset: int) -> None:
    """Stop if something other than a member or the end follows; tarfile would ignore it."""
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read(BLOCK)
    if any(rest) or not rest:
        raise ValueError(f"it is damaged at byte {offset}: neither a member nor the end follows")


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
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, got {text[:80]!r}")
    return join_labels(values.get(label_key, ""))


def join_labels(labels: object) -> str:
    """Return one or several labels comma-joined.

    A comma inside one of several becomes a semicolon: "Male speech, man speaking" is one label.
    """
    if isinstance(labels, Iterable) and not isinstance(labels, str):
        return ",".join(str(label).strip().replace(",", ";") for label in labels)
    return "" if labels is None else str(labels).strip()
