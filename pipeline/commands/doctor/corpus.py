"""How many clips the source has, as far as that can be known at once and without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.corpus import segments
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.fetcher import store_folder
from pipeline.corpus.fetch.media import recording_url
from pipeline.corpus.ledger import OK
from pipeline.corpus.params import AudioSetParams, SegmentListParams
from pipeline.corpus.segments import Segment
from pipeline.corpus.sources import open_source, selection
from pipeline.corpus.sources.audioset import cached_path
from pipeline.corpus.sources.folder import Folder
from pipeline.corpus.sources.tar import Tar

AUDIOSET = {"unbalanced_train": 2_041_789, "balanced_train": 22_160, "eval": 20_371}  # rows
USUAL_S = 10.0  # seconds, of a clip of AudioSet
SMALL_LIST = 5_000_000  # bytes; a larger list is counted, not read
SMALL_JOURNAL = 20_000_000
SMALL_CORPUS = 5_000_000_000  # bytes of files that are opened one by one to count their clips
FLAC = 0.54  # size of FLAC, times that of 16-bit PCM
FETCHED = 48_000 * 2 * 2 * FLAC  # bytes per second of a clip as fetched: 48 kHz, stereo


@dataclass(frozen=True)
class Corpus:
    """The clips of a source, before any is lost."""

    clips: int
    duration_s: float  # of one, on average
    fetched_bytes: float  # of one, as fetched
    known_from: str


def address(config: Config) -> str:
    """Return the address of a recording, with {recording_id}; "" if the source is local files."""
    chosen = getattr(config.sources, config.source)
    if isinstance(chosen, SegmentListParams | AudioSetParams):
        return recording_url(chosen.url, "{recording_id}")
    return ""


def corpus(config: Config) -> Corpus | None:
    """Return what is known of the source, None if that takes a look at too many files.

    Raises:
        OSError, ValueError: its list or files are missing or broken.
    """
    chosen: Any = getattr(config.sources, config.source)
    if isinstance(chosen, AudioSetParams):
        places = {s: cached_path(chosen.lists.replace("{subset}", s)) for s in chosen.subsets}
        clips = sum(count(p) if p.exists() else AUDIOSET[s] for s, p in places.items())
        return listed(clips, USUAL_S, ", ".join(places), chosen)
    if isinstance(chosen, SegmentListParams):
        path = Path(chosen.segments)
        if path.exists() and path.stat().st_size > SMALL_LIST:
            return listed(count(path), USUAL_S, str(path), chosen)
        found = segments.read(path)
        return listed(len(found), mean_s(found), str(path), chosen)
    return contained(open_source(chosen), chosen)


def listed(clips: int, duration_s: float, known_from: str, chosen: Any) -> Corpus:
    """Return the corpus of a list of segments, or of those among them that `clips` names."""
    if chosen.clips:
        clips = min(clips, len(selection.ids_in(chosen.clips)))
        known_from = chosen.clips
    return Corpus(clips, duration_s, fetched_bytes(chosen.url, duration_s), known_from)


def contained(source: Any, chosen: Any) -> Corpus | None:
    """Return the corpus of files that are here."""
    files = source.files()
    size = sum(file.stat().st_size for file in files)
    if size > SMALL_CORPUS and isinstance(source, Folder | Tar):
        return None
    every = source.segments()
    wanted = selection.select(every, chosen.clips)
    return Corpus(len(wanted), mean_s(wanted), size / len(every), f"{len(files)} files")


def mean_s(found: Sequence[Segment]) -> float:
    """Return the mean duration; that of a whole recording is not known before it is read."""
    return sum(s.duration_s or USUAL_S for s in found) / len(found)


def fetched_bytes(template: str, duration_s: float) -> float:
    """Return the size of a clip as fetched: the mean of those that are here, if there are any."""
    folder = store_folder(template)
    journal = folder / "journal.jsonl"
    if journal.exists() and journal.stat().st_size < SMALL_JOURNAL:
        sizes = [o.bytes for _, o in ClipStore(folder).items() if o.status == OK and o.bytes]
        if sizes:
            return sum(sizes) / len(sizes)
    return FETCHED * duration_s


def count(path: Path) -> int:
    """Return the rows of a list: its lines without comments, header and blanks."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        return sum(
            not line.startswith(("#", "YTID", "ytid")) and not line.isspace() for line in lines
        )
