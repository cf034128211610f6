"""The ledger: the outcome of every row of the segment list, carried from stage to stage.

CSV with one line per row, in the list's order:

    row         0-based row of the segment list
    clip_id     "<recording_id>_<start in ms>"
    recording_id, start_s, end_s, labels    as in the segment list; labels comma-joined
    status      "ok", or the class of the failure: gone, geo, login, blocked, transient, no_audio,
                bad_address, too_large, corrupt, short, silent, clipped; "waiting": not tried yet
    stage       stage in which it failed; empty if ok
    reason      why it failed
    bytes, sha256    of the clip as fetched
    duration_s  of what was fetched; less than end_s - start_s where the recording ends early
    peak_db     highest level of the resampled mono clip, dB of full scale; -1000: digital silence
    clipped     share of the samples, of all channels as fetched, that are at full scale
    frames      of its log-mel
"""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from pipeline.core import shard_folder
from pipeline.core.shard_folder import Manifest
from pipeline.corpus.clips.segments import Segment, read_text

OK = "ok"
DIGITAL_SILENCE_DB = -1000.0  # stands for minus infinity


@dataclass(slots=True, kw_only=True)  # frozen takes twice as long, for two million rows
class Row:
    """One line of the ledger."""

    row: int
    clip_id: str
    recording_id: str
    start_s: float
    end_s: float
    labels: str
    status: str = OK
    stage: str = ""
    reason: str = ""
    bytes: int | None = None
    sha256: str = ""
    duration_s: float | None = None
    peak_db: float | None = None
    clipped: float | None = None
    frames: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the clip is usable so far."""
        return self.status == OK

    def failed(self, stage: str, status: str, reason: str) -> "Row":
        """Return this row with its failure in a stage."""
        return replace(self, status=status, stage=stage, reason=reason)


COLUMNS = [field.name for field in fields(Row)]
REQUIRED = {"row", "clip_id", "recording_id", "start_s", "end_s", "status"}
_PARSERS: dict[str, Any] = {
    **dict.fromkeys(("row", "bytes", "frames"), int),
    **dict.fromkeys(("start_s", "end_s", "duration_s", "peak_db", "clipped"), float),
}
_LEAST = {"peak_db": DIGITAL_SILENCE_DB}  # of a number; 0 unless said here


def from_segment(segment: Segment, **became: Any) -> Row:
    """Return the row of a segment, with what is known of its clip."""
    return Row(
        row=segment.row,
        clip_id=segment.clip_id,
        recording_id=segment.recording_id,
        start_s=segment.start_s,
        end_s=segment.end_s,
        labels=segment.labels,
        **became,
    )


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write a ledger; a value that is not known is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(attrgetter(*COLUMNS), rows))


def read(path: Path) -> list[Row]:
    """Return the rows of a ledger.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, the columns are not a ledger's, or a row is broken.
    """
    return [Row(**values) for values in _parse(path, COLUMNS)]


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return some columns of a ledger by name; None stands for an unknown number.

    Raises:
        FileNotFoundError, ValueError: as of `read`; cells of other columns are not checked.
    """
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for values in _parse(path, names):
        for name, value in values.items():
            columns[name].append(value)
    return columns


def _parse(path: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the values of some columns, row by row: there may be millions."""
    positions = [(name, COLUMNS.index(name)) for name in names]
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle)
        try:
            _check_header(path, next(reader, []))
            for cells in reader:
                if len(cells) != len(COLUMNS):
                    raise ValueError(f"it has {len(cells)} cells, expected {len(COLUMNS)}")
                yield {name: _value(name, cells[position]) for name, position in positions}
        except UnicodeDecodeError:
            read_text(path)  # names the line
            raise
        except (csv.Error, ValueError) as error:
            if not reader.line_num > 1:
                raise
            raise ValueError(
                f"{path}, line {reader.line_num} is broken: {error}. A stage writes this file; it "
                "is not for editing."
            ) from error


def _check_header(path: Path, header: list[str]) -> None:
    if header != COLUMNS:
        raise ValueError(
            f"{path} is not a ledger: expected the columns {','.join(COLUMNS)}, "
            f"got {','.join(header)}."
        )


def _value(name: str, text: str) -> Any:
    if not text:
        if name in REQUIRED:
            raise ValueError(f"{name} is empty")
        return None if name in _PARSERS else ""
    parse = _PARSERS.get(name, str)
    try:
        value = parse(text)
    except ValueError:
        value = math.nan
    least = _LEAST.get(name, 0)
    if parse is not str and not (math.isfinite(value) and value >= least):
        kind = "whole number" if parse is int else "number"
        raise ValueError(f"{name} is {text!r}, expected a {kind} of {least} or more")
    return value


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many rows have each status, "ok" first, then the commonest failure."""
    found = Counter(row.status for row in rows)
    return dict(sorted(found.items(), key=lambda item: (item[0] != OK, -item[1], item[0])))


def summary(rows: Iterable[Row]) -> str:
    """Return the counts in words, for a log line."""
    return ", ".join(f"{count} {status}" for status, count in counts(rows).items())


def check_failed(rows: Sequence[Row], stage: str, max_failed: float, path: Path) -> None:
    """Check that at most a given share of the clips that reached a stage failed in it.

    Raises:
        RuntimeError: with the share, the limit, the commonest reason and where the ledger is.
    """
    failed = [row for row in rows if row.stage == stage]
    reached = len(failed) + sum(row.ok for row in rows)
    if len(failed) <= max_failed * reached:
        return
    raise RuntimeError(
        f"{len(failed)} of {reached} clips ({len(failed) / reached:.1%}) failed, more than "
        f"{stage}.max_failed = {max_failed:.1%} allows. {_commonest(failed)} All are in {path}. "
        f"Fix the source, or raise {stage}.max_failed in params.yaml."
    )


def check_any(rows: Sequence[Row], path: Path) -> None:
    """Check that a clip is left.

    Raises:
        RuntimeError: with the commonest reason and where the ledger is.
    """
    if not any(row.ok for row in rows):
        raise RuntimeError(f"None of {len(rows)} clips is left. {_commonest(rows)} See {path}.")


def _commonest(failed: Sequence[Row]) -> str:
    status, count = Counter(row.status for row in failed).most_common(1)[0]
    example = next(row for row in failed if row.status == status)
    return (
        f"The commonest failure is {status!r} ({count}), for example {example.clip_id}: "
        f"{example.reason}."
    )


def manifest_of(rows: Sequence[Row], clips_per_shard: int) -> Manifest:
    """Return the manifest of a folder whose ledger has these rows."""
    return shard_folder.manifest_of([row.ok for row in rows], clips_per_shard)


def read_complete(folder: Path, manifest: Manifest, stage: str) -> list[Row]:
    """Return the rows of a stage's ledger.csv after checking them against its manifest.

    Raises:
        FileNotFoundError: there is no ledger.
        ValueError: it is broken, or it and the manifest do not belong together.
    """
    try:
        rows = read(folder / "ledger.csv")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no {folder}/ledger.csv. {shard_folder.rebuild_hint(stage)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{error} {shard_folder.rebuild_hint(stage)}") from error
    if manifest_of(rows, manifest.clips_per_shard) != manifest:
        raise ValueError(
            f"{folder}/ledger.csv ({len(rows)} rows, {summary(rows)}) does not belong to "
            f"its manifest.json ({manifest}). {shard_folder.rebuild_hint(stage)}"
        )
    return rows
