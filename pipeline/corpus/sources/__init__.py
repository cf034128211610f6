"""Where the clips come from: one module per source, of which `source` in params.yaml names one.

A source lists what it has as segments (`pipeline.corpus.segments`), each of which is one row of the
ledger and one clip. What the recordings are decides how the clips are had:

Recordings    sample, url, audioset: `segments()` and `url`, a path or URL with {ytid}. The queue of
              `pipeline.corpus.fetch.fetcher` fetches each segment, however long that takes.
Container     folder, fsd50k, tar, parquet, hdf5: files that are here. `packing` copies the clips
              into shards, without a network and without storing them singly.

A segment of a container whose end is its start is the whole recording; how long it is, is known
when it is read. `ytid` is the id of the recording in its source, for example its relative path.
"""

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
        """Path or URL of a recording; {ytid} is its id."""
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
