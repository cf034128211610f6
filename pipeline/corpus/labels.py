"""AudioSet's class_labels_indices.csv: number, id and name of each label.

    index,mid,display_name
    0,/m/09x0r,"Speech"

Further columns and any order of columns are accepted; each function needs only the columns it uses.
"""

import csv
from pathlib import Path

from pipeline.corpus.clips.segments import read_text

HEADER = "index,mid,display_name"


def read_names(path: Path) -> dict[str, str]:
    """Return the name of each label by AudioSet id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks the columns `mid` and `display_name`.
    """
    return {row["mid"]: row["display_name"] for row in _read(path, "mid", "display_name")}


def read_ids(path: Path) -> list[str]:
    """Return the AudioSet ids of the labels by class number.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks the columns `index` and `mid`, or the indices do not count from 0.
    """
    rows = _read(path, "index", "mid")
    if [row["index"].strip() for row in rows] != [str(number) for number in range(len(rows))]:
        raise ValueError(f"{path}: the indices of the classes must count from 0.")
    return [row["mid"] for row in rows]


def _read(path: Path, *columns: str) -> list[dict[str, str]]:
    """Return the rows in which no column is missing."""
    rows = csv.reader(read_text(path).splitlines(), skipinitialspace=True)
    header = [cell.strip() for cell in next(rows, [])]
    if missing := set(columns) - set(header):
        raise ValueError(
            f"{path} does not list labels: expected the columns {HEADER} of AudioSet's "
            f"class_labels_indices.csv, but {' and '.join(sorted(missing))} is missing."
        )
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
