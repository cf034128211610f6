"""From the store of fetched clips to the shards of the stage's output, without a second copy.

A shard that the store has already, because none of its clips changed, is linked, not written.
"""

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.core import shard_folder
from pipeline.core.shard_folder import Manifest
from pipeline.corpus.clips import tar_shards
from pipeline.corpus.clips.ledger import Row
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.download_ledger import clip_key


def write(
    store: ClipStore,
    folder: Path,
    manifest: Manifest,
    rows: Sequence[Row],
    segments: Sequence[Segment],
) -> None:
    """Write all shards of a folder, and keep their clips in the store as these shards.

    Raises:
        RuntimeError: another process is writing to the store, or the disk has lost a clip.
    """
    paths = shard_folder.shard_paths(folder, manifest, tar_shards.SUFFIX)
    with store.locked():
        for path, shard_rows in zip(paths, manifest.rows_of(rows), strict=True):
            clips = [row for row in shard_rows if row.ok]
            keys = [clip_key(segments[row.row]) for row in clips]
            name = shard_name(clips)
            if not store.link_shard(name, path):
                contents = zip((row.clip_id for row in clips), map(store.read, keys), strict=True)
                tar_shards.write(path, contents)
            store.replace_packs(name, path, dict(zip(keys, offsets(path), strict=True)))
        store.compact()


def shard_name(clips: Sequence[Row]) -> str:
    """Return the name that a shard of these clips has in the store."""
    content = "\n".join(f"{row.clip_id} {row.sha256}" for row in clips)
    return hashlib.sha256(content.encode()).hexdigest()[:16] + tar_shards.SUFFIX


def offsets(path: Path) -> list[int]:
    """Return the offset of each member's content in a tar file, in bytes."""
    with tarfile.open(path, "r:") as tar:
        return [member.offset_data for member in tar]
