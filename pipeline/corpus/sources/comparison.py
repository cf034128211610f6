"""A copy of AudioSet against Google's lists of what it should hold: what is missing is a row, too.

Recordings of the copy come first, in its own order, so that its files are read once from front to
back; the missing ones follow in the order of the lists.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from pipeline.corpus.clips import segments
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.sources.audioset import concatenate, obtain

logger = logging.getLogger(__name__)

# Copies name recordings by YouTube's id of 11 characters; some add a Y before it, times after it.
NAMED_BY_ID = re.compile(r"(?:.*/)?Y?([\w-]{11})(?:_\d[\d.]*)*")


def read_lists(locations: Sequence[str]) -> list[Segment]:
    """Return the segments of some lists, which are fetched once if they are on the web.

    Raises:
        FileNotFoundError, ValueError: a list is missing or broken, or two have the same clip.
        OSError: a list cannot be fetched.
    """
    return concatenate([segments.read(obtain(x, segments.read)) for x in locations])


def compare(
    found: Sequence[Segment], listed: Sequence[Segment], key: str
) -> tuple[list[Segment], dict[str, str]]:
    """Return the listed segments, those that are here first, and the names that those have here.

    Args:
        found: the recordings of the copy.
        listed: the segments that it should hold.
        key: the parameter that names the lists, for messages.

    Raises:
        ValueError: the copy has none of them, or one of them twice.
    """
    expected = {segment.recording_id: segment for segment in listed}
    here: dict[str, str] = {}  # id in the list -> id in the copy
    rows: list[Segment] = []
    for segment in found:
        name = _listed_id(segment.recording_id, expected)
        if name is None:
            continue
        if name in here:
            raise ValueError(
                f"The recordings {here[name]!r} and {segment.recording_id!r} are both {name!r} of "
                f"{key}. Remove one."
            )
        here[name] = segment.recording_id
        labels = segment.labels or expected[name].labels
        rows.append(replace(expected[name], row=len(rows), labels=labels))
    if not here:
        raise ValueError(
            f"None of the {len(found)} recordings, such as {found[0].recording_id!r}, is in the "
            f"lists of {key}, which begin with {listed[0].recording_id!r}. Correct the lists."
        )
    missing = (segment for name, segment in expected.items() if name not in here)
    rows += [replace(segment, row=row) for row, segment in enumerate(missing, len(rows))]
    logger.info(
        "%d of %d listed clips are here, %d are missing; left out, as they are not listed: %d",
        *(len(here), len(rows), len(rows) - len(here), len(found) - len(here)),
    )
    return rows, here


def _listed_id(recording_id: str, expected: dict[str, Segment]) -> str | None:
    if recording_id in expected:
        return recording_id
    match = NAMED_BY_ID.fullmatch(recording_id)
    return match[1] if match and match[1] in expected else None
