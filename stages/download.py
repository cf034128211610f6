"""Stage `download`: the clips of a source, as obtained.

Reads   data/<source>, what its section names elsewhere, or the web
Writes  data/clips: tar shards, ledger.csv, manifest.json
Params  source, sources.<source>, download
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core import params, shard_folder
from pipeline.core.settings import ComputeParams, NetworkParams
from pipeline.core.stage import Stage, arguments, run
from pipeline.corpus import ledger
from pipeline.corpus.fetch import clip_shards
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.fetcher import STAGE, WAITING, Fetcher, check_tried, store_folder
from pipeline.corpus.params import SOURCES, DownloadParams
from pipeline.corpus.segments import Segment
from pipeline.corpus.sources import files, open_source, packing, selection
from pipeline.corpus.sources.source import Container, Recordings

CLIPS = "data/clips"


def main(stage: Stage) -> None:
    """Run the stage."""
    source = stage.value("source")
    chosen: Any = stage.load(f"sources.{source}", SOURCES[source])
    given = open_source(chosen)
    if isinstance(given, Container):
        pack(stage, given, chosen.clips)
    else:
        fetch(stage, given, selection.select(given.segments(), chosen.clips))


def fetch(stage: Stage, source: Recordings, wanted: Sequence[Segment]) -> None:
    """Fetch what is missing of the clips and publish them."""
    store = ClipStore(store_folder(source.url))
    download = stage.load("download", DownloadParams)
    network = params.load("network", NetworkParams)
    compute = params.load("compute", ComputeParams)
    with stage.output(CLIPS) as folder:
        fetcher = Fetcher(source.url, store, folder.parent / "partial", network)
        rows = fetcher.run(wanted, compute.connections)
        check_tried(rows, download.publish_partial)
        complete = conclude(folder, rows, download)
        clip_shards.write(store, folder, complete, rows, wanted)
        shard_folder.write(folder, complete)


def pack(stage: Stage, source: Container, clips: str) -> None:
    """Copy the clips of a container and publish them."""
    state = files.source_state(source.files(), clips)
    packed = stage.work_folder("packed", packing.VERSION, state)
    download = stage.load("download", DownloadParams)
    size = download.clips_per_shard
    with stage.output(CLIPS) as folder:
        wanted = selection.select(source.segments(), clips)
        shards = packed / f"{size}-per-shard"
        rows = packing.pack(source, wanted, shards, size)
        complete = conclude(folder, rows, download)
        files.check_unchanged(source.files(), clips, state)
        packing.hand_over(shards, folder, complete.shards)
        shard_folder.write(folder, complete)


def conclude(
    folder: Path, rows: Sequence[ledger.Row], download: DownloadParams
) -> shard_folder.Manifest:
    """Write the ledger and return what the shards must hold.

    Raises:
        RuntimeError: too many clips were lost.
    """
    path = folder / "ledger.csv"
    ledger.write(path, rows)
    tried = [row for row in rows if row.status != WAITING]
    ledger.check_failed(tried, STAGE, download.max_failed, path)
    ledger.check_any(rows, path)
    return ledger.manifest_of(rows, download.clips_per_shard)


if __name__ == "__main__":
    run("download", main, *arguments())
