"""Source `parquet`: the layout of AudioSet's mirrors on the Hugging Face Hub.

One row per recording:

    video_id    text                        the id
    audio       {bytes, path}               an audio file; the path is not followed
    labels      list of text, or text       AudioSet's ids; `human_labels` has their names

Needs pyarrow, an optional package. Files are read in small batches, never by whole row groups.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.params import ParquetParams
from pipeline.corpus.sources.tar import join_labels
from pipeline.corpus.sources.whole_recordings import MultiRecordingFiles

KEY = "sources.parquet.path"
ID, AUDIO = "video_id", "audio"
BATCH = 32  # rows of audio in memory
BUFFER = 1 << 20  # bytes read at a time


class Location(NamedTuple):
    """Where a recording is."""

    path: str
    group: int  # row group
    row: int  # of the row group


class Parquet(MultiRecordingFiles[Location]):
    """See `source.Container`."""

    def __init__(self, params: ParquetParams) -> None:
        super().__init__(params.path, {".parquet"}, KEY)
        self._labels = params.label_column

    def _recordings(self) -> Iterator[tuple[str, str, Location]]:
        columns = [ID, self._labels] if self._labels else [ID]
        for path in map(str, self._files):
            file = open_file(path, [*columns, AUDIO])
            for group in range(file.num_row_groups):
                row = 0
                for batch in file.iter_batches(row_groups=[group], columns=columns):
                    for values in batch.to_pylist():
                        labels = join_labels(values[self._labels]) if self._labels else ""
                        yield str(values[ID] or ""), labels, Location(path, group, row)
                        row += 1

    def contents(self, segments: Sequence[Segment]) -> Iterator[bytes | UnavailableError]:
        """See `source.Container`."""
        locations = [self._locations[segment.recording_id] for segment in segments]
        for (path, group), in_group in groupby(locations, key=lambda location: location[:2]):
            yield from read_rows(path, group, [location.row for location in in_group])


def pyarrow_parquet() -> Any:
    """Return the module pyarrow.parquet.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise RuntimeError(
            f"source = parquet needs pyarrow, which cannot be imported ({error}). Install it with "
            "`pip install pyarrow`."
        ) from error
    return pyarrow.parquet


def open_file(path: str, columns: Sequence[str]) -> Any:
    """Open a Parquet file and check that it has all of the columns.

    Raises:
        ValueError: it is damaged, not a Parquet file, or lacks a column.
    """
    parquet = pyarrow_parquet()
    try:
        file = parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise ValueError(
            f"{path} is damaged, or not a Parquet file: {error}. Fetch it again."
        ) from error
    names = file.schema_arrow.names
    missing = [column for column in columns if column not in names]
    if missing:
        raise ValueError(
            f"{path} has the columns {', '.join(names)}, but not {', '.join(missing)}; expected "
            f"are {ID}, {AUDIO} and sources.parquet.label_column."
        )
    return file


def read_rows(path: str, group: int, rows: Sequence[int]) -> Iterator[bytes | UnavailableError]:
    """Yield the audio of some rows of a row group, in ascending order, or why it cannot be read."""
    done, first = 0, 0
    try:
        file = open_file(path, [AUDIO])
        for batch in file.iter_batches(BATCH, row_groups=[group], columns=[AUDIO]):
            while done < len(rows) and rows[done] < first + len(batch):
                value = batch.column(0)[rows[done] - first].as_py()
                done += 1
                yield _content(value)
            if done == len(rows):
                return
            first += len(batch)
    except (OSError, ValueError) as error:
        fault = UnavailableError("corrupt", f"row group {group} is damaged: {error}")
        yield from [fault] * (len(rows) - done)


def _content(value: Any) -> bytes | UnavailableError:
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return content
    path = value.get("path") if isinstance(value, dict) else None
    return UnavailableError("gone", f"its row holds no bytes, only the path {path!r}")
