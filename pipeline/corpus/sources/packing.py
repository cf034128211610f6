"""Clips of a container into tar shards, so that an interrupted run goes on after the last shard.

    <folder>/00000.tar    the clips of a shard as they are in the container
    <folder>/00000.csv    its ledger; it is written last, and says that the shard is complete
    <folder>/lock         held by the one process that may write

Only the clip under way is in memory.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from pipeline.core import shard_folder
from pipeline.core.locks import exclusive
from pipeline.corpus import ledger, tar_shards
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.fetch.fetcher import STAGE
from pipeline.corpus.fetch.media import MIN_CLIP_S
from pipeline.corpus.segments import Segment
from pipeline.corpus.sources import probing
from pipeline.corpus.sources.source import Container

VERSION = "3"  # raise it when the same containers become other shards


def pack(
    source: Container, segments: Sequence[Segment], folder: Path, clips_per_shard: int
) -> list[ledger.Row]:
    """Write what is missing of the shards and return the ledger of all.

    Raises:
        RuntimeError: another process is writing them.
    """
    rows: list[ledger.Row] = []
    folder.mkdir(parents=True, exist_ok=True)
    with (
        exclusive(folder / "lock", f"copying the same clips into {folder}"),
        tqdm(total=len(segments), unit="clip", desc=STAGE, disable=None) as bar,
    ):
        for shard in range(shard_folder.shard_count(len(segments), clips_per_shard)):
            part = segments[shard * clips_per_shard : (shard + 1) * clips_per_shard]
            path = shard_folder.shard_path(folder, shard, tar_shards.SUFFIX)
            if not path.with_suffix(".csv").exists():
                _pack_shard(source, part, path)
            rows += ledger.read(path.with_suffix(".csv"))
            bar.update(len(part))
    return rows


def _pack_shard(source: Container, segments: Sequence[Segment], path: Path) -> None:
    rows: list[ledger.Row] = []

    def usable() -> Iterator[tuple[str, bytes]]:
        for segment, content in zip(segments, source.contents(segments), strict=True):
            try:
                rows.append(obtained(segment, content))
            except UnavailableError as error:
                row = ledger.from_segment(segment)
                rows.append(row.failed(STAGE, error.kind, error.reason))
            else:
                assert isinstance(content, bytes)
                yield segment.clip_id, content

    partial = path.with_suffix(".partial")
    tar_shards.write(partial, usable())
    os.replace(partial, path)
    ledger.write(partial, rows)
    os.replace(partial, path.with_suffix(".csv"))


def obtained(segment: Segment, content: bytes | UnavailableError) -> ledger.Row:
    """Return the row of a clip.

    Raises:
        UnavailableError: there is none, or it is no audio.
    """
    if isinstance(content, UnavailableError):
        raise content
    duration_s = probing.duration_s(content)
    if duration_s is not None and duration_s < MIN_CLIP_S:
        raise UnavailableError("short", f"it lasts {duration_s:.3f} s")
    row = ledger.from_segment(segment)
    return replace(
        row,
        end_s=max(row.end_s, round(duration_s or 0.0, 6)),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        duration_s=None if duration_s is None else round(duration_s, 6),
    )


def hand_over(folder: Path, target: Path, shards: int) -> None:
    """Put the shards into another folder, without a copy: as hard links.

    The shards stay here, so that a run that is stopped hereafter, or repeated, need not make them
    again. Where the file system has no hard links, they are moved.
    """
    for shard in range(shards):
        path = shard_folder.shard_path(folder, shard, tar_shards.SUFFIX)
        try:
            os.link(path, target / path.name)
        except OSError:
            path.with_suffix(".csv").unlink()
            shutil.move(path, target / path.name)
