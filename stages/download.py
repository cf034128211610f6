"""Stage `download`: the clips of a source, as obtained.

Reads   data/<source>, what its section names elsewhere, or the web
Writes  data/clips: tar shards, ledger.csv, manifest.json
Params  source, sources.<source>, download
"""

from typing import Any

from pipeline.core import params, shard_folder
from pipeline.core.files import link_or_copy
from pipeline.core.settings import ComputeParams, NetworkParams
from pipeline.core.stage import Stage, arguments, run
from pipeline.corpus.clips import tar_shards
from pipeline.corpus.clips.shard_cache import ShardCache
from pipeline.corpus.fetch import clip_shards
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.download_ledger import write_ledger
from pipeline.corpus.fetch.failures import STAGE
from pipeline.corpus.fetch.fetcher import Fetcher, store_folder
from pipeline.corpus.params import SOURCES, DownloadParams
from pipeline.corpus.sources import files, open_source, packing
from pipeline.corpus.sources.selection import select
from pipeline.corpus.sources.source import Container, Recordings

CLIPS = "data/clips"


def main(stage: Stage) -> None:
    """Run the stage."""
    name = stage.value("source")
    section: Any = stage.load(f"sources.{name}", SOURCES[name])
    download = stage.load("download", DownloadParams)
    source = open_source(section)
    if isinstance(source, Container):
        copy(stage, source, section, download)
    else:
        fetch(stage, source, section, download)


def fetch(stage: Stage, source: Recordings, section: Any, download: DownloadParams) -> None:
    """Fetch the clips that are missing and publish all."""
    segments = select(source.segments(), section.clips)
    store = ClipStore(store_folder(source.url))
    network = params.load("network", NetworkParams)
    compute = params.load("compute", ComputeParams)
    with stage.output(CLIPS) as folder:
        fetcher = Fetcher(source.url, store, folder.parent / "partial", network)
        rows = fetcher.run(segments, compute.connections)
        manifest = write_ledger(folder, rows, download)
        clip_shards.write(store, folder, manifest, rows, segments)
        shard_folder.write(folder, manifest)


def copy(stage: Stage, source: Container, section: Any, download: DownloadParams) -> None:
    """Copy the clips of a container and publish them."""
    state = files.source_state(source.files(), section.clips)
    inputs = [section.model_dump(), state]
    segments = select(source.segments(), section.clips)
    jobs = packing.make_jobs(source, inputs, segments, download)
    code = packing.packing_code(source)
    shards = ShardCache(STAGE, CLIPS, tar_shards.SUFFIX, packing.write_shard, code, jobs)
    compute = params.load("compute", ComputeParams).model_copy(update={"workers": 1})
    with shards.kept(), stage.output(CLIPS) as folder:
        paths = shards.finish(compute)
        manifest = write_ledger(folder, shards.rows(paths), download)
        files.check_unchanged(source.files(), section.clips, state)
        targets = shard_folder.shard_paths(folder, manifest, tar_shards.SUFFIX)
        for path, target in zip(paths, targets, strict=True):
            link_or_copy(path, target)
        shard_folder.write(folder, manifest)
    shards.tidy()


if __name__ == "__main__":
    run(STAGE, main, *arguments())
