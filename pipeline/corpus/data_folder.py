"""The folder data/<source>, whose content DVC tracks as a dependency of the stage `download`."""

from pathlib import Path
from typing import Any

BESIDE_DATA = ("labels.csv", "tasks")  # of the report and of HEAR's tasks


def require_data(source: str, section: Any) -> None:
    """Stop if a source's data should be in data/<source> and are not.

    DVC would otherwise take the empty folder for the data that the rest of the run belongs to.

    Args:
        source: name of the source.
        section: its parameters.

    Raises:
        FileNotFoundError: there are no data.
    """
    key = "path" if hasattr(section, "path") else "segments"
    path = Path(getattr(section, key, ""))
    if path.is_relative_to(f"data/{source}") and not (path.is_file() or _has_data(path)):
        raise FileNotFoundError(
            f"There are no data in {path}. Put them there, or correct sources.{source}.{key} in "
            "params.yaml."
        )


def _has_data(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(
        name not in BESIDE_DATA and not name.startswith(".") and not name.endswith(".dvc")
        for name in names
    )
