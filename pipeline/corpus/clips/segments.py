"""Segment lists in AudioSet's format: which seconds of which recording make up a clip.

    # any number of comment lines
    # YTID, start_seconds, end_seconds, positive_labels
    --PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"

Copies of the published files vary: fewer comment lines, a header without `#`, integer seconds,
Windows line ends. All of these are read; anything else that differs is an error with its line.
"""

import csv
import math
import re
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

COLUMNS = 4
EXAMPLE = '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"'
SHOWN_ERRORS = 10
PLAIN_ROW = re.compile(r'([\w-][\w.-]*), ?([\d.]+), ?([\d.]+), ?"([^"\s]*)"')  # as published
FILE_NAME = re.compile(r"[\w-][\w.-]*")
LONGEST_ID = 200  # characters; a file name has at most 255, with what is added to the id
UNSTORABLE = re.compile(r"[\x00\r\ud800-\udfff]")  # by HDF5, CSV and UTF-8 respectively


@dataclass(frozen=True, slots=True)
class Segment:
    """One row of a segment list."""

    row: int  # 0-based, without comments and header
    recording_id: str
    start_s: float
    end_s: float
    labels: str  # AudioSet ids, comma-joined

    @property
    def clip_id(self) -> str:
        """Name of the clip that is cut out, "<recording_id>_<start in ms>"."""
        return f"{self.recording_id}_{round(self.start_s * 1000)}"

    @property
    def duration_s(self) -> float:
        """Wanted duration; the recording may end earlier."""
        return self.end_s - self.start_s


def read(path: Path) -> list[Segment]:
    """Return the rows of a segment list in their order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text, lists nothing, or has broken or repeated rows; the message
            names the line and the value of each (the first ten).
    """
    segments: list[Segment] = []
    lines = array("Q")  # of each segment
    firsts: dict[str, Segment] = {}  # by recording; most recordings have one clip
    others: dict[str, Segment] = {}  # by clip id
    errors = []
    for number, cells in _rows(path):
        try:
            segment = _parse(len(segments), cells)
            first = firsts.setdefault(segment.recording_id, segment)
            if first is not segment and first.clip_id != segment.clip_id:
                first = others.setdefault(segment.clip_id, segment)
            if first is not segment:
                line = lines[first.row]
                raise ValueError(f"clip {segment.clip_id!r} is listed on line {line} already")
        except ValueError as error:
            errors.append(f"  line {number}: {error}")
        else:
            segments.append(segment)
            lines.append(number)
    if errors:
        raise ValueError(_broken(path, errors))
    if not segments:
        raise ValueError(f"{path} lists no segments; expected rows such as {EXAMPLE}.")
    return segments


def read_text(path: Path) -> str:
    """Return the content of a text file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8; the message names the line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8 text ({error}); save it as UTF-8."
        ) from None


def _broken(path: Path, errors: list[str]) -> str:
    shown = errors[:SHOWN_ERRORS]
    more = [f"  and {len(errors) - len(shown)} more"] if len(errors) > len(shown) else []
    title = f"{path}: {len(errors)} broken row(s); correct or remove them, {EXAMPLE} is a good one."
    return "\n".join([title, *shown, *more])


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number (from 1) and stripped cells of each row of data."""
    for number, line in enumerate(_lines(path), start=1):
        if match := PLAIN_ROW.fullmatch(line):
            yield number, list(match.groups())
            continue
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            cells = next(csv.reader([line], skipinitialspace=True, strict=True))
        except csv.Error as error:
            cells = [f"{line.strip()} ({error})"]
        if cells[0].strip().casefold() != "ytid":
            yield number, [cell.strip() for cell in cells]


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file: AudioSet has two million."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from (line.rstrip("\n") for line in lines)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no segment list {path}; correct `segments` of the source in params.yaml, "
            "or put the file there."
        ) from None
    except UnicodeDecodeError:
        read_text(path)  # names the line
        raise


def _parse(row: int, cells: list[str]) -> Segment:
    if len(cells) != COLUMNS:
        raise ValueError(f"expected {COLUMNS} columns, got {len(cells)}: {', '.join(cells)}")
    recording_id, start, end, labels = cells
    if not FILE_NAME.fullmatch(recording_id):
        raise ValueError(f"id {recording_id!r} must be of letters, digits, '-', '_' and '.'")
    if len(recording_id) > LONGEST_ID:
        start = f"id '{recording_id[:20]}...' has {len(recording_id)} characters"
        raise ValueError(f"{start}, more than the {LONGEST_ID} that fit a file name")
    start_s, end_s = _seconds("start", start), _seconds("end", end)
    if start_s < 0:
        raise ValueError(f"start {start} is negative")
    if end_s <= start_s:
        raise ValueError(f"end {end} must be later than start {start}")
    check_labels(recording_id, labels)
    joined = ",".join(x.strip() for x in labels.split(",")) if " " in labels else labels
    return Segment(
        row, recording_id, start_s, end_s, sys.intern(joined)
    )  # few combinations make up many rows


def check_labels(recording_id: str, labels: str) -> None:
    """Check that ledgers and shards can store labels.

    Raises:
        ValueError: they hold a NUL, a carriage return or half a surrogate pair.
    """
    if found := UNSTORABLE.search(labels):
        raise ValueError(
            f"labels {labels!r} of {recording_id!r} hold {found[0]!r}, which ledger and "
            "shards cannot store"
        )


@lru_cache(maxsize=1 << 16)  # millions of rows have few values
def _seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:
        raise ValueError(f"{name} {text!r} is not a number of seconds")
    return value
