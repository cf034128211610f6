"""How many clips the source has, as far as a quick look without a network can tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.corpus.clips import segments
from pipeline.corpus.clips.ledger import OK
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.fetcher import store_folder
from pipeline.corpus.fetch.media import recording_url
from pipeline.corpus.params import AudioSetParams, SegmentListParams
from pipeline.corpus.sources import open_source, selection
from pipeline.corpus.sources.audioset import cached_path
from pipeline.corpus.sources.folder import Folder
from pipeline.corpus.sources.tar import Tar

AUDIOSET_ROWS = {"unbalanced_train": 2_041_789, "balanced_train": 22_160, "eval": 20_371}
USUAL_S = 10.0  # seconds, of a clip of AudioSet
SMALL_LIST = 5_000_000  # bytes; a larger list is counted, not read
SMALL_JOURNAL = 20_000_000
SMALL_CORPUS = 5_000_000_000  # bytes of files, each of which is opened to count clips
FLAC = 0.54  # size of FLAC relative to 16-bit PCM
FETCHED = 48_000 * 2 * 2 * FLAC  # bytes per second of a clip as fetched: 48 kHz, stereo


@dataclass(frozen=True)
class SourceSize:
    """Number and size of a source's clips, before any are lost."""

    clips: int
    duration_s: float  # mean
    fetched_bytes: float  # mean size of a clip as fetched
    known_from: str  # the list or files that were looked at


def address(config: Config) -> str:
    """Return the URL template of the recordings, "" if the source is a container."""
    section = getattr(config.sources, config.source)
    if isinstance(section, SegmentListParams | AudioSetParams):
        return recording_url(section.url, "{recording_id}")
    return ""


def source_size(config: Config) -> SourceSize | None:
    """Return the size of the source, None if too many files would have to be opened.

    Raises:
        OSError, ValueError: its list or files are missing or broken.
    """
    section: Any = getattr(config.sources, config.source)
    if isinstance(section, AudioSetParams):
        paths = {s: cached_path(section.lists.replace("{subset}", s)) for s in section.subsets}
        clips = sum(count(p) if p.exists() else AUDIOSET_ROWS[s] for s, p in paths.items())
        return size_of_list(clips, USUAL_S, ", ".join(paths), section)
    if isinstance(section, SegmentListParams):
        path = Path(section.segments)
        if path.exists() and path.stat().st_size > SMALL_LIST:
            return size_of_list(count(path), USUAL_S, str(path), section)
        rows = segments.read(path)
        return size_of_list(len(rows), mean_s(rows), str(path), section)
    return size_of_container(open_source(offline(section)), section)


def offline(section: Any) -> Any:
    """Return a container's section without lists to compare with that are not on this disk yet."""
    lists = getattr(section, "segments", [])
    if all(cached_path(location).exists() for location in lists):
        return section
    return section.model_copy(update={"segments": []})


def size_of_list(clips: int, duration_s: float, known_from: str, section: Any) -> SourceSize:
    """Return the size of a list of segments, or of those selected by `clips`."""
    if section.clips:
        clips = min(clips, len(selection.ids_in(section.clips)))
        known_from = section.clips
    return SourceSize(clips, duration_s, fetched_bytes(section.url, duration_s), known_from)


def size_of_container(source: Any, section: Any) -> SourceSize | None:
    """Return the size of a container."""
    files = source.files()
    size = sum(file.stat().st_size for file in files)
    if size > SMALL_CORPUS and isinstance(source, Folder | Tar):
        return None
    segments = source.segments()
    selected = selection.select(segments, section.clips)
    return SourceSize(len(selected), mean_s(selected), size / len(segments), f"{len(files)} files")


def mean_s(rows: Sequence[Segment]) -> float:
    """Return the mean duration; a whole recording, not read yet, counts as `USUAL_S`."""
    return sum(s.duration_s or USUAL_S for s in rows) / len(rows)


def fetched_bytes(template: str, duration_s: float) -> float:
    """Return the mean size of the clips that are here, or an estimate if there are none."""
    folder = store_folder(template)
    journal = folder / "journal.jsonl"
    if journal.exists() and journal.stat().st_size < SMALL_JOURNAL:
        sizes = [o.bytes for _, o in ClipStore(folder).items() if o.status == OK and o.bytes]
        if sizes:
            return sum(sizes) / len(sizes)
    return FETCHED * duration_s


def count(path: Path) -> int:
    """Return the rows of a list: its lines, except comments, header and blanks."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        return sum(
            not line.startswith(("#", "YTID", "ytid")) and not line.isspace() for line in lines
        )
