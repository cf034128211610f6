"""Containers whose clips are whole recordings: checked ids, one segment each."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.corpus.clips.segments import Segment, check_labels
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.sources.comparison import compare, read_lists
from pipeline.corpus.sources.files import list_files
from pipeline.corpus.sources.selection import shortened

# Control characters, line ends, and bytes that are not UTF-8.
UNLISTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:[/\\]|(.*[/\\])?\.\.([/\\]|$)")  # absolute, or with a `..`

Location = TypeVar("Location", bound=tuple[Any, ...])


class MultiRecordingFiles(ABC, Generic[Location]):
    """Base of each `Container` whose files hold many recordings.

    Args:
        section: the section of `sources`, for messages.
        path, suffixes: see `list_files`.
        lists: segment lists of what the files should hold, see `comparison`.
    """

    def __init__(
        self, section: str, path: str, suffixes: Collection[str], lists: Sequence[str]
    ) -> None:
        self._section = f"sources.{section}"
        self._files = list_files(Path(path), suffixes, f"{self._section}.path")
        self._lists = lists
        self._locations: dict[str, Location] = {}

    def files(self) -> list[Path]:
        """See `source.Container`."""
        return self._files

    def segments(self) -> list[Segment]:
        """List the recordings of all files in order, then those that only the lists have."""
        segments, locations = one_segment_each(self._recordings(), f"{self._section}.path")
        if self._lists:
            listed = read_lists(self._lists)
            segments, here = compare(segments, listed, f"{self._section}.segments")
            locations = {name: locations[recording_id] for name, recording_id in here.items()}
        self._locations = locations
        return segments

    def contents(
        self, segments: Sequence[Segment], max_bytes: float
    ) -> Iterator[bytes | UnavailableError]:
        """See `source.Container`."""
        for is_here, group in groupby(segments, lambda s: s.recording_id in self._locations):
            if is_here:
                found = [(s.recording_id, self._locations[s.recording_id]) for s in group]
                yield from self._contents(found, max_bytes)
            else:
                why = f"it is listed in {self._section}.segments, but not in the files"
                yield from (UnavailableError("gone", why) for _ in group)

    @abstractmethod
    def _recordings(self) -> Iterable[tuple[str, str, Location]]:
        """Return id, labels and location of each recording."""

    @abstractmethod
    def _contents(
        self, found: Sequence[tuple[str, Location]], max_bytes: float
    ) -> Iterator[bytes | UnavailableError]:
        """Yield the recordings at some locations, which come with their ids."""


def one_segment_each(
    recordings: Iterable[tuple[str, str, Location]], key: str
) -> tuple[list[Segment], dict[str, Location]]:
    """Return one segment for each recording, and the locations by id.

    Args:
        recordings: (id, labels, location), in order; a location begins with the path of a file.
        key: the parameter that names the data, for messages.

    Raises:
        ValueError: there are none, an id or its labels are invalid, or an id is used twice; the
            message names them.
    """
    segments: list[Segment] = []
    locations: dict[str, Location] = {}
    errors = []
    for recording_id, labels, location in recordings:
        try:
            check_id(recording_id)
            check_labels(recording_id, labels)
            first = locations.setdefault(recording_id, location)
            if first is not location:
                raise ValueError(f"id {recording_id!r} is in {first[0]} already")
        except ValueError as error:
            errors.append(f"  {location[0]}: {error}")
        else:
            segments.append(Segment(len(segments), recording_id, 0.0, 0.0, labels))
    if errors:
        title = f"{len(errors)} recordings cannot be told apart or stored; fix or remove them."
        raise ValueError("\n".join([title, *shortened(errors)]))
    if not segments:
        raise ValueError(f"There is no recording in what {key} in params.yaml names.")
    return segments, locations


def check_id(recording_id: str) -> None:
    """Stop at an id that cannot be the name of a clip in a tar file.

    Raises:
        ValueError: it is empty, an absolute path, contains a `..`, line ends, other control
            characters, or bytes that are not UTF-8.
    """
    if match := UNLISTABLE.search(recording_id):
        raise ValueError(
            f"id {recording_id!r} holds {match[0]!r}: a line end, control character or invalid text"
        )
    if OUTSIDE.match(recording_id):
        raise ValueError(
            f"{recording_id!r} leads out of its folder: absolute paths and '..' are refused"
        )
    if not recording_id.strip("./ "):
        raise ValueError(f"id {recording_id!r} is not a name")
