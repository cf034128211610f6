"""Folders of the encoders of earlier epochs: snapshots/epoch-<five digits>, one each."""

from pathlib import Path

FOLDER = "snapshots"
PREFIX = "epoch-"


def snapshot_folder(run: Path, epoch: int) -> Path:
    """Return the folder of an epoch's encoder in the folder of its run."""
    return run / FOLDER / f"{PREFIX}{epoch:05d}"


def find_snapshots(run: Path) -> dict[int, Path]:
    """Return the folders of all snapshots of a run by epoch, in order."""
    folders = sorted((run / FOLDER).glob(f"{PREFIX}*"))
    return {int(folder.name.removeprefix(PREFIX)): folder for folder in folders}
