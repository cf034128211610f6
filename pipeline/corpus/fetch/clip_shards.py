"""From the store of fetched clips to the shards of the stage's output, without keeping any twice.

A shard that the store holds already, since no clip of it has changed, is linked, not written.
"""

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.core import shard_folder
from pipeline.core.shard_folder import Manifest
from pipeline.corpus import tar_shards
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.download_ledger import clip_key
from pipeline.corpus.ledger import Row
from pipeline.corpus.segments import Segment


def write(
    store: ClipStore,
    folder: Path,
    complete: Manifest,
    rows: Sequence[Row],
    segments: Sequence[Segment],
) -> None:
    """Write all shards of a folder and leave their clips in the store as the shards.

    Raises:
        RuntimeError: another process is writing to the store, or the disk has lost a clip.
    """
    paths = shard_folder.shard_paths(folder, complete, tar_shards.SUFFIX)
    with store.locked():
        for path, shard in zip(paths, complete.rows_of(rows), strict=True):
            clips = [row for row in shard if row.ok]
            keys = [clip_key(segments[row.row]) for row in clips]
            name = pack_name(clips)
            if not store.lend(name, path):
                contents = zip((row.clip_id for row in clips), map(store.read, keys), strict=True)
                tar_shards.write(path, contents)
            store.adopt(name, path, dict(zip(keys, offsets(path), strict=True)))
        store.tidy()


def pack_name(clips: Sequence[Row]) -> str:
    """Return the name that a shard of these clips has in the store."""
    content = "\n".join(f"{row.clip_id} {row.sha256}" for row in clips)
    return hashlib.sha256(content.encode()).hexdigest()[:16] + tar_shards.SUFFIX


def offsets(path: Path) -> list[int]:
    """Return the first byte of each member of a tar file."""
    with tarfile.open(path, "r:") as tar:
        return [member.offset_data for member in tar]
