"""Parameter `clips` of each source: a list that restricts it to some clips or recordings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.corpus.clips import ledger
from pipeline.corpus.clips.segments import Segment, read_text

SHOWN = 10  # lines of a message, at most


def select(segments: Sequence[Segment], path: str) -> list[Segment]:
    """Return the segments that a list names; "" selects all.

    Args:
        segments: all that the source has.
        path: file with the id of a clip or recording on each line, or a ledger.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is empty, or names clips that the source lacks.
    """
    if not path:
        return list(segments)
    listed = dict.fromkeys(ids_in(path))
    if not listed:
        raise ValueError(f"{path} lists no clips; expected one id per line.")
    selected: list[Segment] = []
    known: set[str] = set()
    for segment in segments:
        if names := {segment.clip_id, segment.recording_id} & listed.keys():
            known |= names
            selected.append(replace(segment, row=len(selected)))
    if unknown := [f"  {line}" for line in listed if line not in known]:
        title = f"{path} lists {len(unknown)} clips that the source does not have; remove them:"
        raise ValueError("\n".join([title, *shortened(unknown)]))
    return selected


def ids_in(path: str) -> list[str]:
    """Return the ids in a list, or those of a ledger's usable clips; none if `path` is empty."""
    if not path:
        return []
    try:
        lines = read_text(Path(path)).splitlines()
        if lines and lines[0] == ",".join(ledger.COLUMNS):
            return [row.clip_id for row in ledger.read(Path(path)) if row.ok]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no list of clips {path}; correct `clips` of the source in params.yaml."
        ) from None
    return [line.strip() for line in lines if line.strip()]


def shortened(lines: list[str]) -> list[str]:
    """Return the first lines, and how many more there are."""
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more
