"""Stage `logmel`: log-mel spectrograms, their statistics, and the ledger of all data stages.

Reads   data/audio16k
Writes  data/logmel: HDF5 shards, SHA256SUMS, stats.json, manifest.json; data/ledger.csv
Params  logmel

`--shard i/n` makes every n-th shard only, from the i-th on (0 <= i < n), and publishes nothing.
"""

import json
from pathlib import Path

from pipeline.core import params, shard_folder
from pipeline.core.code_identity import code_identity
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import Stage
from pipeline.corpus.clips import ledger, shard_cache, tar_shards
from pipeline.corpus.clips.shard_cache import ShardCache
from pipeline.corpus.logmel import LIBRARIES, STAGE, Job, logmel_shard, summarize
from pipeline.features import hdf5_shards, stats
from pipeline.features.params import LogMelParams

AUDIO = Path("data/audio16k")
FEATURES = "data/logmel"
LEDGER = "data/ledger.csv"


def main(stage: Stage, part: tuple[int, int] | None = None) -> None:
    """Run the stage, or do a part of its shards."""
    log_mel = stage.load("logmel", LogMelParams)
    compute = params.load("compute", ComputeParams)

    given = shard_folder.verify(AUDIO, tar_shards.SUFFIX, stage="resample")
    row_shards = given.rows_of(ledger.read_complete(AUDIO, given, stage="resample"))
    sources = shard_folder.shard_paths(AUDIO.absolute(), given, tar_shards.SUFFIX)
    sums = shard_folder.read_sums(AUDIO, given.shards, stage="resample")
    jobs = [
        Job(source, sha256, rows, log_mel)
        for source, sha256, rows in zip(sources, sums, row_shards, strict=True)
    ]
    code = code_identity(logmel_shard.__module__, LIBRARIES)
    shards = ShardCache(STAGE, FEATURES, hdf5_shards.SUFFIX, logmel_shard, code, jobs)
    if part:
        with shards.kept():
            shards.finish(compute, part)
        return
    with (
        shards.kept(),
        stage.output(FEATURES) as folder,
        stage.output(LEDGER, file=True) as finished,
    ):
        paths = shards.finish(compute)
        rows = shards.rows(paths)
        ledger.write(finished, rows)
        ledger.check_any(rows, finished)
        shards.place(paths, folder)
        totals = stats.merge(map(hdf5_shards.read_totals, paths))
        (folder / "stats.json").write_text(json.dumps(summarize(totals, rows), indent=2) + "\n")
        shard_folder.write(folder, ledger.manifest_of(rows, given.clips_per_shard))
    shards.tidy()


if __name__ == "__main__":
    shard_cache.run_or_part(STAGE, main)
