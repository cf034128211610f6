"""Where the clips come from: one module per source; `source` in params.yaml names the one in use.

A source lists its content as segments (`pipeline.corpus.clips.segments`), each of which becomes a
clip and a row of the ledger. There are two kinds:

Recordings    sample, url, audioset: `segments()` and `url`, a path or URL with {recording_id};
              `pipeline.corpus.fetch` fetches each segment, however long that takes.
Container     folder, fsd50k, tar, parquet, hdf5: local files; `packing` copies their clips into
              shards, without a network and without intermediate files.

A segment of a container that ends where it starts is a whole recording, whose length is known once
it is read. `recording_id` identifies a recording within its source, for example by relative path.
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
