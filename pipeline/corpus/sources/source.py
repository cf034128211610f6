"""What a source is: recordings to fetch, or files that hold clips."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.segments import Segment


@runtime_checkable
class Recordings(Protocol):
    """Recordings to fetch, from the web or from files."""

    @property
    def url(self) -> str:
        """Path or URL of a recording; {recording_id} is its id."""
        ...

    def segments(self) -> list[Segment]:
        """Return all segments in their order, `row` counting from 0.

        Raises:
            FileNotFoundError: what they are listed in is missing.
            ValueError: it is broken, or lists a clip twice.
        """
        ...


@runtime_checkable
class Container(Protocol):
    """Files of clips."""

    def files(self) -> list[Path]:
        """Return every file that is read; names, sizes and times decide whether work is redone."""
        ...

    def segments(self) -> list[Segment]:
        """As of `Recordings`."""
        ...

    def contents(self, segments: Sequence[Segment]) -> Iterator[bytes | UnavailableError]:
        """Yield, for each segment in their order, an audio file, or why there is none."""
        ...
