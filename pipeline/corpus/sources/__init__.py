"""Where the clips come from: one module per source, of which `source` in params.yaml names one.

A source lists what it has as segments (`pipeline.corpus.segments`), each of which is one row of the
ledger and one clip. What the recordings are decides how the clips are had:

Recordings    sample, url, audioset: `segments()` and `url`, a path or URL with {recording_id}. The
              queue of `pipeline.corpus.fetch` fetches each segment, however long that takes.
Container     folder, fsd50k, tar, parquet, hdf5: files that are here. `packing` copies the clips
              into shards, without a network and without storing them singly.

A segment of a container whose end is its start is the whole recording; how long it is, is known
when it is read. `recording_id` is the id of the recording in its source, for example its relative
path.
"""

from collections.abc import Callable
from typing import Any

from pipeline.core.params import Section
from pipeline.corpus.params import (
    AudioSetParams,
    FolderParams,
    Fsd50kParams,
    Hdf5Params,
    ParquetParams,
    SegmentListParams,
    TarParams,
)
from pipeline.corpus.sources.audioset import AudioSet
from pipeline.corpus.sources.folder import Folder
from pipeline.corpus.sources.fsd50k import Fsd50k
from pipeline.corpus.sources.hdf5 import Hdf5
from pipeline.corpus.sources.parquet import Parquet
from pipeline.corpus.sources.segment_list import SegmentList
from pipeline.corpus.sources.source import Container, Recordings
from pipeline.corpus.sources.tar import Tar

CLASSES: dict[type[Section], Callable[[Any], Recordings | Container]] = {
    SegmentListParams: SegmentList,
    AudioSetParams: AudioSet,
    FolderParams: Folder,
    Fsd50kParams: Fsd50k,
    TarParams: Tar,
    ParquetParams: Parquet,
    Hdf5Params: Hdf5,
}


def open_source(params: Section) -> Recordings | Container:
    """Return the source that a section of `sources` describes.

    Raises:
        FileNotFoundError, ValueError: its files are missing or broken.
    """
    return CLASSES[type(params)](params)
