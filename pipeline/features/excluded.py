"""`data/excluded.csv`: the clips that pre-training leaves out, under the header clip_id."""

from collections.abc import Sequence
from pathlib import Path

STAGE = "exclude"
COLUMN = "clip_id"


def write(path: Path, clips: Sequence[str]) -> None:
    """Write the list of clips that are left out."""
    path.write_text("\n".join([COLUMN, *clips]) + "\n", encoding="utf-8")


def read(path: Path) -> list[str]:
    """Return the clips that are left out.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: the file is something else.
    """
    again = f"Run `dvc repro {STAGE}`, or `dvc pull {STAGE}` if it was pushed."
    try:
        header, *clips = path.read_text(encoding="utf-8").splitlines() or [""]
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {path}. {again}") from None
    if header != COLUMN:
        raise ValueError(f"{path} begins with {header!r}, expected {COLUMN!r}. {again}")
    return clips
