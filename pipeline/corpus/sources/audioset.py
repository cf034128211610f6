"""Source `audioset`: Google's lists of segments, whose recordings the queue fetches.

The lists and the names of the labels are read from files, or fetched once from where they are
published and kept in `.work/audioset/`. What is fetched takes its name there only when it is
complete and is what it should be.
"""

import hashlib
import http.client
import logging
import os
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.core.stage import root
from pipeline.corpus import labels, segments
from pipeline.corpus.params import AudioSetParams
from pipeline.corpus.segments import Segment

logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0  # without data


class AudioSet:
    """Recordings of one or several subsets of AudioSet."""

    def __init__(self, params: AudioSetParams) -> None:
        self.url = params.url
        self._params = params

    def segments(self) -> list[Segment]:
        """See `source.Recordings`; the subsets one after the other.

        Raises:
            OSError: a list cannot be fetched.
        """
        self.label_names()  # fetched along, for whoever shows them
        places = [self._params.lists.replace("{subset}", s) for s in self._params.subsets]
        return joined([segments.read(local(place, segments.read)) for place in places])

    def label_names(self) -> dict[str, str]:
        """Return the name of each label, by AudioSet id.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is another one.
            OSError: it cannot be fetched.
        """
        return labels.read_names(local(self._params.labels, labels.read_names))

    def is_here(self) -> bool:
        """Return whether the lists can be read without a network."""
        places = [self._params.lists.replace("{subset}", s) for s in self._params.subsets]
        return all(kept(place).exists() for place in [*places, self._params.labels])


def joined(lists: Sequence[list[Segment]]) -> list[Segment]:
    """Return the segments of several lists as one list.

    Raises:
        ValueError: a clip is in two of them.
    """
    if len(lists) == 1:
        return lists[0]
    found: dict[str, Segment] = {}
    for listed in lists:
        for segment in listed:
            if segment.clip_id in found:
                raise ValueError(
                    f"The clip {segment.clip_id} is in two of the subsets; correct "
                    "sources.audioset.subsets in params.yaml, or the lists."
                )
            found[segment.clip_id] = replace(segment, row=len(found))
    return list(found.values())


def is_address(place: str) -> bool:
    """Return whether a place is on the web rather than a path."""
    return place.startswith(("http://", "https://"))


def kept(place: str) -> Path:
    """Return the path of a file, or that under which a fetched one is kept."""
    if not is_address(place):
        return Path(place)
    folder = hashlib.sha256(place.encode()).hexdigest()[:8]
    return root() / ".work" / "audioset" / folder / Path(urlsplit(place).path).name


def local(place: str, check: Callable[[Path], Any]) -> Path:
    """Return the path of a file, fetching it if it is on the web and not here yet.

    Args:
        place: a path or an address.
        check: reads the file; what it raises keeps a wrong file from being kept.

    Raises:
        OSError: the address cannot be read.
    """
    path = kept(place)
    if path.exists() or not is_address(place):
        return path
    logger.info("fetching %s", place)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        _fetch(place, partial)
        check(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _fetch(address: str, target: Path) -> None:
    try:
        with (
            urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(answer, out)
            expected = answer.headers.get("Content-Length")
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"{address} cannot be fetched ({error}). Run it again later, correct the address in "
            "params.yaml, or save the file and give its path instead."
        ) from error
    if expected is not None and target.stat().st_size != int(expected):
        raise OSError(
            f"{address} ended after {target.stat().st_size} of {expected} bytes. Run it again."
        )
