"""Stage `download`: the clips of a segment list, as fetched.

Reads   data/<source>, or the web
Writes  data/clips: tar shards, ledger.csv, manifest.json
Params  source, sources.<source>, download
"""

from pathlib import Path

from pipeline import ledger, manifest, params, segments, tarshards
from pipeline.clipstore import ClipStore
from pipeline.download import CUT_VERSION, STAGE, Fetcher, key
from pipeline.params.data import ComputeParams, DownloadParams, SourceParams
from pipeline.stage import Stage, arguments, run

CLIPS = "data/clips"


def main(stage: Stage) -> None:
    """Run the stage."""
    source = stage.value("source")
    site = stage.load(f"sources.{source}", SourceParams)
    # Before the section `download` is read: its limits must not decide which clips are kept.
    store = ClipStore(stage.work_folder("clips", CUT_VERSION))
    download = stage.load("download", DownloadParams)
    compute = params.load("compute", ComputeParams)

    listed = segments.read(Path(site.segments))
    with stage.output(CLIPS) as folder:
        fetcher = Fetcher(site.url, store, folder.parent / "partial", download)
        rows = fetcher.run(listed, compute.connections)
        ledger.write(folder / "ledger.csv", rows)
        ledger.check_failed(rows, STAGE, download.max_failed, folder / "ledger.csv")
        ledger.check_any(rows, folder / "ledger.csv")
        complete = ledger.manifest_of(rows, download.clips_per_shard)
        paths = manifest.shard_paths(folder, complete, tarshards.SUFFIX)
        for path, shard in zip(paths, complete.rows_of(rows), strict=True):
            clips = [(row, store.path(key(listed[row.row]))) for row in shard if row.ok]
            tarshards.write(path, ((row.clip_id, clip.read_bytes()) for row, clip in clips))
        manifest.write(folder, complete)


if __name__ == "__main__":
    run("download", main, *arguments())
