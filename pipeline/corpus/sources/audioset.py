"""Source `audioset`: Google's segment lists, whose recordings are fetched one by one.

The lists and the names of the labels are files, or fetched once from where they are published and
cached in `.work/audioset/`; a file gets its name there only when it is complete and valid.
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

from pipeline.core.stage import work_root
from pipeline.corpus import labels
from pipeline.corpus.clips import segments
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.params import AudioSetParams

logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0  # without data


class AudioSet:
    """Recordings of one or several subsets of AudioSet."""

    def __init__(self, params: AudioSetParams) -> None:
        self.url = params.url
        self._lists = [params.lists.replace("{subset}", subset) for subset in params.subsets]
        self._labels = params.labels

    def segments(self) -> list[Segment]:
        """See `source.Recordings`; the subsets follow each other.

        Raises:
            OSError: a list cannot be fetched.
        """
        self.label_names()  # to have them cached for the commands
        return concatenate([segments.read(obtain(x, segments.read)) for x in self._lists])

    def label_names(self) -> dict[str, str]:
        """Return the name of each label by AudioSet id.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it does not list labels.
            OSError: it cannot be fetched.
        """
        return labels.read_names(obtain(self._labels, labels.read_names))

    def is_here(self) -> bool:
        """Return whether the lists can be read without a network."""
        return all(cached_path(x).exists() for x in [*self._lists, self._labels])


def concatenate(lists: Sequence[list[Segment]]) -> list[Segment]:
    """Return the segments of several lists as one list.

    Raises:
        ValueError: a clip is in two of them.
    """
    if len(lists) == 1:
        return lists[0]
    by_clip: dict[str, Segment] = {}
    for subset in lists:
        for segment in subset:
            if segment.clip_id in by_clip:
                raise ValueError(
                    f"The clip {segment.clip_id} is in two of the subsets; correct "
                    "sources.audioset.subsets in params.yaml, or the lists."
                )
            by_clip[segment.clip_id] = replace(segment, row=len(by_clip))
    return list(by_clip.values())


def is_address(location: str) -> bool:
    """Return whether a location is on the web rather than a path."""
    return location.startswith(("http://", "https://"))


def cached_path(location: str) -> Path:
    """Return the path of a file; if it is on the web, where its copy is or will be."""
    if not is_address(location):
        return Path(location)
    folder = hashlib.sha256(location.encode()).hexdigest()[:8]
    return work_root() / "audioset" / folder / Path(urlsplit(location).path).name


def obtain(location: str, check: Callable[[Path], Any]) -> Path:
    """Return the path of a file, after fetching it if it is on the web and not cached yet.

    Args:
        location: a path or an address.
        check: reads the file; if it raises, the file is not cached.

    Raises:
        OSError: the address cannot be read.
    """
    path = cached_path(location)
    if path.exists() or not is_address(location):
        return path
    logger.info("fetching %s", location)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        _fetch(location, partial)
        check(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _fetch(address: str, target: Path) -> None:
    try:
        with (
            urllib.request.urlopen(address, timeout=TIMEOUT_S) as response,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(response, out)
            expected = response.headers.get("Content-Length")
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"{address} cannot be fetched ({error}). Run it again later, correct the address in "
            "params.yaml, or save the file and give its path instead."
        ) from error
    if expected is not None and target.stat().st_size != int(expected):
        raise OSError(
            f"{address} ended after {target.stat().st_size} of {expected} bytes. Run it again."
        )
