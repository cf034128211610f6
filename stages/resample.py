"""Stage `resample`: clips as fetched to mono FLAC at the front end's sample rate.

Reads   data/clips
Writes  data/audio16k: tar shards, ledger.csv, manifest.json
Params  resample, logmel.sample_rate
"""

from itertools import chain
from pathlib import Path

from pipeline import ledger, manifest, params, tarshards
from pipeline.params.data import ComputeParams, ResampleParams
from pipeline.pool import map_shards
from pipeline.resample import STAGE, Job, resample_shard
from pipeline.stage import Stage, arguments, run

CLIPS = Path("data/clips")
AUDIO = "data/audio16k"


def main(stage: Stage) -> None:
    """Run the stage."""
    resample = stage.load("resample", ResampleParams)
    sample_rate = stage.value("logmel.sample_rate")
    compute = params.load("compute", ComputeParams)

    given = manifest.verify(CLIPS, tarshards.SUFFIX, stage="download")
    shards = given.rows_of(ledger.read_complete(CLIPS, given, stage="download"))
    sources = manifest.shard_paths(CLIPS, given, tarshards.SUFFIX)
    with stage.output(AUDIO) as folder:
        targets = manifest.shard_paths(folder, given, tarshards.SUFFIX)
        jobs = [
            Job(source, target, rows, resample, sample_rate)
            for source, target, rows in zip(sources, targets, shards, strict=True)
        ]
        rows = list(chain.from_iterable(map_shards(resample_shard, jobs, compute.workers, STAGE)))
        ledger.write(folder / "ledger.csv", rows)
        ledger.check_failed(rows, STAGE, resample.max_failed, folder / "ledger.csv")
        ledger.check_any(rows, folder / "ledger.csv")
        manifest.write(folder, ledger.manifest_of(rows, given.clips_per_shard))


if __name__ == "__main__":
    run("resample", main, *arguments())
