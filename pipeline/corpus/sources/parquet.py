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

from pipeline.corpus.fetch.failures import UnavailableError, check_machine
from pipeline.corpus.params import ParquetParams
from pipeline.corpus.sources.source import too_large
from pipeline.corpus.sources.tar import join_labels
from pipeline.corpus.sources.whole_recordings import MultiRecordingFiles

ID, AUDIO = "video_id", "audio"
BATCH = 32  # rows of audio in memory
BUFFER = 1 << 20  # bytes read at a time
OVERHEAD = 1 << 20  # bytes of a row group that are not audio


class Location(NamedTuple):
    """Where a recording is."""

    path: str
    group: int  # row group
    row: int  # of the row group


class Parquet(MultiRecordingFiles[Location]):
    """See `source.Container`."""

    def __init__(self, params: ParquetParams) -> None:
        super().__init__("parquet", params.path, {".parquet"}, params.segments)
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

    def _contents(
        self, found: Sequence[tuple[str, Location]], max_bytes: float
    ) -> Iterator[bytes | UnavailableError]:
        for (path, group), in_group in groupby(found, key=lambda item: item[1][:2]):
            rows = [location.row for _, location in in_group]
            yield from read_rows(path, group, rows, max_bytes)


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


def read_rows(
    path: str, group: int, rows: Sequence[int], max_bytes: float
) -> Iterator[bytes | UnavailableError]:
    """Yield the audio of some rows of a row group, in ascending order, or why it cannot be read."""
    done, first = 0, 0
    try:
        file = open_file(path, [AUDIO])
        name = f"row group {group} of {path}"
        size, count = unpacked_size(file.metadata.row_group(group))
        if size > max_bytes * count + OVERHEAD:
            yield from [too_large(name, size, max_bytes * count)] * len(rows)
            return
        for batch in file.iter_batches(BATCH, row_groups=[group], columns=[AUDIO]):
            while done < len(rows) and rows[done] < first + len(batch):
                value = batch.column(0)[rows[done] - first].as_py()
                done += 1
                yield _content(value, name, max_bytes)
            if done == len(rows):
                return
            first += len(batch)
    except (OSError, ValueError, MemoryError) as error:
        check_machine(error)
        fault = UnavailableError("corrupt", f"row group {group} is damaged: {error}")
        yield from [fault] * (len(rows) - done)


def unpacked_size(group: Any) -> tuple[int, int]:
    """Return the bytes of the audio in a row group once unpacked, and its number of rows."""
    columns = (group.column(i) for i in range(group.num_columns))
    audio = (column for column in columns if column.path_in_schema.split(".")[0] == AUDIO)
    return sum(column.total_uncompressed_size for column in audio), group.num_rows


def _content(value: Any, name: str, max_bytes: float) -> bytes | UnavailableError:
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return content if len(content) <= max_bytes else too_large(name, len(content), max_bytes)
    path = value.get("path") if isinstance(value, dict) else None
    return UnavailableError("gone", f"its row holds no bytes, only the path {path!r}")
