"""Stage `resample`: clips as fetched to mono FLAC at the front end's sample rate.

Reads   data/clips
Writes  data/audio16k: tar shards, SHA256SUMS, ledger.csv, manifest.json
Params  resample, logmel.sample_rate

`--shard i/n` makes every n-th shard only, from the i-th on (0 <= i < n), and publishes nothing.
"""

import logging
from pathlib import Path

from pipeline.core import params, shard_folder
from pipeline.core.code_identity import code_identity
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import Stage
from pipeline.corpus.clips import ledger, shard_cache, tar_shards
from pipeline.corpus.clips.shard_cache import ShardCache
from pipeline.corpus.params import ResampleParams
from pipeline.corpus.resample import LIBRARIES, STAGE, Job, describe_levels, resample_shard

CLIPS = Path("data/clips")
AUDIO = "data/audio16k"

logger = logging.getLogger(STAGE)


def main(stage: Stage, part: tuple[int, int] | None = None) -> None:
    """Run the stage, or do a part of its shards."""
    resample = stage.load("resample", ResampleParams)
    sample_rate = stage.value("logmel.sample_rate")
    compute = params.load("compute", ComputeParams)

    given = shard_folder.verify(CLIPS, tar_shards.SUFFIX, stage="download")
    row_shards = given.rows_of(ledger.read_complete(CLIPS, given, stage="download"))
    sources = shard_folder.shard_paths(CLIPS.absolute(), given, tar_shards.SUFFIX)
    jobs = [
        Job(source, rows, resample, sample_rate)
        for source, rows in zip(sources, row_shards, strict=True)
    ]
    code = code_identity(resample_shard.__module__, LIBRARIES)
    shards = ShardCache(STAGE, AUDIO, tar_shards.SUFFIX, resample_shard, code, jobs)
    if part:
        with shards.kept():
            shards.finish(compute, part)
        return
    with shards.kept(), stage.output(AUDIO) as folder:
        paths = shards.finish(compute)
        rows = shards.rows(paths)
        logger.info(describe_levels(rows, resample))
        ledger.write(folder / "ledger.csv", rows)
        ledger.check_failed(rows, STAGE, resample.max_failed, folder / "ledger.csv")
        ledger.check_any(rows, folder / "ledger.csv")
        shards.place(paths, folder)
        shard_folder.write(folder, ledger.manifest_of(rows, given.clips_per_shard))
    shards.tidy()


if __name__ == "__main__":
    shard_cache.run_or_part(STAGE, main)
