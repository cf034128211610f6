"""The two kinds of sources: recordings to fetch, and files that hold clips."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.failures import UnavailableError


@runtime_checkable
class Recordings(Protocol):
    """Recordings from which clips are cut, on the web or in files."""

    @property
    def url(self) -> str:
        """Path or URL of a recording; {recording_id} is its id."""
        ...

    def segments(self) -> list[Segment]:
        """Return all segments in their order, `row` counting from 0.

        Raises:
            FileNotFoundError: the list is missing.
            ValueError: it is broken, or lists a clip twice.
        """
        ...


@runtime_checkable
class Container(Protocol):
    """Files of clips."""

    def files(self) -> list[Path]:
        """Return every file that is read; a change of name, size or time means new work."""
        ...

    def segments(self) -> list[Segment]:
        """See `Recordings`."""
        ...

    def contents(
        self, segments: Sequence[Segment], max_bytes: float
    ) -> Iterator[bytes | UnavailableError]:
        """Yield an audio file for each segment, in order, or the reason why there is none.

        One of more than `max_bytes` is not read: a small container may claim to hold a huge one.
        """
        ...


def too_large(name: str, size: int, max_bytes: float) -> UnavailableError:
    """Return why a file of `size` bytes is not read."""
    limit = f"{max_bytes / 1e6:g} MB (download.max_clip_mb)"
    return UnavailableError("too_large", f"{name} has {size:,} bytes, more than {limit}")
