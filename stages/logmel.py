"""Stage `logmel`: log-mel spectrograms, their statistics, and the ledger of all data stages.

Reads   data/audio16k
Writes  data/logmel: HDF5 shards, stats.json, manifest.json; data/ledger.csv
Params  logmel
"""

import json
from itertools import chain
from pathlib import Path

from pipeline import ledger, manifest, params, shards, stats, tarshards
from pipeline.logmel import STAGE, Job, logmel_shard, summarize
from pipeline.params.data import ComputeParams, LogMelParams
from pipeline.pool import map_shards
from pipeline.stage import Stage, arguments, run

AUDIO = Path("data/audio16k")
FEATURES = "data/logmel"
LEDGER = "data/ledger.csv"


def main(stage: Stage) -> None:
    """Run the stage."""
    log_mel = stage.load("logmel", LogMelParams)
    compute = params.load("compute", ComputeParams)

    given = manifest.verify(AUDIO, tarshards.SUFFIX, stage="resample")
    row_shards = given.rows_of(ledger.read_complete(AUDIO, given, stage="resample"))
    sources = manifest.shard_paths(AUDIO, given, tarshards.SUFFIX)
    with stage.output(FEATURES) as folder, stage.output(LEDGER, file=True) as finished:
        targets = manifest.shard_paths(folder, given, shards.SUFFIX)
        jobs = [
            Job(source, target, rows, log_mel)
            for source, target, rows in zip(sources, targets, row_shards, strict=True)
        ]
        done = map_shards(logmel_shard, jobs, compute.workers, STAGE)
        rows = list(chain.from_iterable(rows for rows, _ in done))
        ledger.write(finished, rows)
        ledger.check_any(rows, finished)
        statistics = summarize(stats.merge(totals for _, totals in done), rows)
        (folder / "stats.json").write_text(json.dumps(statistics, indent=2) + "\n")
        manifest.write(folder, ledger.manifest_of(rows, given.clips_per_shard))


if __name__ == "__main__":
    run("logmel", main, *arguments())
