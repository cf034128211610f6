"""`data/excluded.csv`: clips that pre-training leaves out, one id per line under `clip_id`."""

from collections.abc import Sequence
from pathlib import Path

STAGE = "exclude"
COLUMN = "clip_id"


def write(path: Path, clip_ids: Sequence[str]) -> None:
    """Write the ids of the clips to leave out."""
    path.write_text("\n".join([COLUMN, *clip_ids]) + "\n", encoding="utf-8")


def read(path: Path) -> list[str]:
    """Return the ids of the clips to leave out.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: the file does not begin with the header.
    """
    remedy = f"Run `dvc repro {STAGE}`, or `dvc pull {STAGE}` if it was pushed."
    try:
        header, *clip_ids = path.read_text(encoding="utf-8").splitlines() or [""]
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {path}. {remedy}") from None
    if header != COLUMN:
        raise ValueError(f"{path} begins with {header!r}, expected {COLUMN!r}. {remedy}")
    return clip_ids
