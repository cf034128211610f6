"""Source `folder`: any tree of audio files, one recording each; long ones are cut into clips.

The id of a recording is its path in the tree without the suffix, unless another file's id would be
the same (`x.wav` beside `x.mp3`); there are no labels.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.failures import UnavailableError, check_machine
from pipeline.corpus.params import FolderParams
from pipeline.corpus.sources import probing
from pipeline.corpus.sources.files import list_files
from pipeline.corpus.sources.source import too_large
from pipeline.corpus.sources.whole_recordings import one_segment_each

SUFFIXES = {
    *(".aac", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".flac", ".m4a", ".m4b"),
    *(".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".snd", ".w64"),
    *(".wav", ".webm", ".wma", ".wv"),
}
KEY = "sources.folder.path"

logger = logging.getLogger(__name__)


class Folder:
    """See `source.Container`."""

    def __init__(self, params: FolderParams) -> None:
        self._root = Path(params.path)
        self._max_clip_s = params.max_clip_s
        self._files = list_files(self._root, SUFFIXES, KEY)
        self._locations: dict[str, tuple[str]] = {}

    def files(self) -> list[Path]:
        """See `source.Container`."""
        return self._files

    def segments(self) -> list[Segment]:
        """List the recordings by path, each cut into clips of at most `max_clip_s`."""
        base = self._root.parent if self._root.is_file() else self._root
        ids = _ids([file.relative_to(base) for file in self._files])
        files = [(name, "", (str(file),)) for name, file in zip(ids, self._files, strict=True)]
        recordings, self._locations = one_segment_each(files, KEY)
        if not self._max_clip_s:
            return recordings
        rows: list[Segment] = []
        for recording in recordings:
            for start_s, end_s in self._spans(recording):
                rows.append(Segment(len(rows), recording.recording_id, start_s, end_s, ""))
        return rows

    def _spans(self, recording: Segment) -> list[tuple[float, float]]:
        """Return (start, end) in seconds of the clips; (0, 0) is the whole file."""
        try:
            duration_s = probing.duration_s(Path(self._locations[recording.recording_id][0]))
        except (OSError, UnavailableError) as error:  # `contents` gives the reason
            check_machine(error)
            return [(0.0, 0.0)]
        cuts = probing.spans(duration_s or 0.0, self._max_clip_s)
        return cuts if len(cuts) > 1 else [(0.0, 0.0)]

    def contents(
        self, segments: Sequence[Segment], max_bytes: float
    ) -> Iterator[bytes | UnavailableError]:
        """See `source.Container`."""
        for recording_id, group in groupby(segments, key=lambda segment: segment.recording_id):
            path, pieces = Path(self._locations[recording_id][0]), list(group)
            if pieces[0].end_s == 0.0:
                yield read_file(path, max_bytes)
            else:
                yield from probing.pieces(path, pieces)


def _ids(paths: Sequence[Path]) -> list[str]:
    """Return a different id for each path: without its suffix, where no other path has this id."""
    stems = [path.with_suffix("").as_posix() for path in paths]
    taken = Counter([*stems, *(path.as_posix() for path in paths)])
    ids = [
        stem if taken[stem] == 1 else path.as_posix()
        for path, stem in zip(paths, stems, strict=True)
    ]
    if kept := sum(name != stem for name, stem in zip(ids, stems, strict=True)):
        logger.info("%d files are like others but for their suffixes, which their ids keep", kept)
    return ids


def read_file(path: Path, max_bytes: float) -> bytes | UnavailableError:
    """Return the content of a file, or why it cannot be read."""
    try:
        size = path.stat().st_size
        return path.read_bytes() if size <= max_bytes else too_large(path.name, size, max_bytes)
    except FileNotFoundError:
        return UnavailableError("gone", f"there is no file {path.name}")
    except OSError as error:
        check_machine(error)
        return UnavailableError("corrupt", f"the file cannot be read: {error.strerror}")
