"""Source `fsd50k`: FSD50K's development set, unpacked as published on Zenodo.

    <path>/FSD50K.dev_audio/<fname>.wav
    <path>/FSD50K.ground_truth/dev.csv       fname,labels,mids,split; split is train or val

The paper pre-trains on both splits: 40,966 clips of 0.3 to 30 s. The evaluation set is not used,
since HEAR tests on it. Labels are AudioSet ids (`mids`).
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.corpus.clips.segments import Segment, read_text
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.params import Fsd50kParams
from pipeline.corpus.sources.files import list_files
from pipeline.corpus.sources.folder import read_file
from pipeline.corpus.sources.whole_recordings import one_segment_each

HEADER = ["fname", "labels", "mids", "split"]
SPLITS = ("train", "val")
KEY = "sources.fsd50k.path"


class Fsd50k:
    """See `source.Container`."""

    def __init__(self, params: Fsd50kParams) -> None:
        self._splits = params.splits
        self._audio = Path(params.path, "FSD50K.dev_audio")
        self._list = Path(params.path, "FSD50K.ground_truth", "dev.csv")
        for path in (self._audio, self._list):
            if not path.exists():
                raise FileNotFoundError(
                    f"There is no {path}; unpack FSD50K there as published, or correct {KEY} in "
                    "params.yaml."
                )

    def files(self) -> list[Path]:
        """See `source.Container`."""
        return [self._list, *list_files(self._audio, {".wav"}, KEY)]

    def segments(self) -> list[Segment]:
        """List the clips of the splits in the order of dev.csv."""
        clips = (
            (fname, mids, (f"{self._list}, line {line}",))
            for line, (fname, _, mids, split) in self._rows()
            if split in self._splits
        )
        return one_segment_each(clips, "sources.fsd50k.splits")[0]

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        rows = csv.reader(read_text(self._list).splitlines())
        header = next(rows, [])
        if header != HEADER:
            raise ValueError(
                f"{self._list} begins with {','.join(header)!r}; expected {','.join(HEADER)!r}, as "
                "published. Unpack FSD50K.ground_truth.zip again."
            )
        for line, cells in enumerate(rows, start=2):
            if len(cells) != len(HEADER) or cells[-1] not in SPLITS or "/" in cells[0]:
                raise ValueError(
                    f"{self._list}, line {line} is {','.join(cells)!r}; expected a row such as "
                    '64760,"Purr,Cat","/m/02yds9,/m/01yrx",train.'
                )
            yield line, cells

    def contents(
        self, segments: Sequence[Segment], max_bytes: float
    ) -> Iterator[bytes | UnavailableError]:
        """See `source.Container`."""
        paths = (self._audio / f"{segment.recording_id}.wav" for segment in segments)
        return (read_file(path, max_bytes) for path in paths)
