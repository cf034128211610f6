"""Stage `leaks <task>`: which pre-training clips are in the test split of a HEAR task.

Reads   data/fingerprints, data/hear/<task>
Writes  reports/leaks/<task>.json
Params  source, leaks.max_bit_error, leaks.min_overlap_s
"""

import logging
from functools import partial
from pathlib import Path

from pipeline.core import params, shard_folder
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import Stage, arguments, run
from pipeline.hear.tasks.task import read_task
from pipeline.leaks import fingerprint, table
from pipeline.leaks.detect import Corpus, find_leaks
from pipeline.leaks.search import MatchCriteria

logger = logging.getLogger(__name__)

FINGERPRINTS = Path("data/fingerprints")


def main(stage: Stage, name: str) -> None:
    """Run the stage."""
    source = stage.value("source")
    max_bit_error = stage.value("leaks.max_bit_error")
    min_overlap_s = stage.value("leaks.min_overlap_s")
    workers = params.load("compute", ComputeParams).local_workers
    manifest = shard_folder.verify(FINGERPRINTS, fingerprint.SUFFIX, fingerprint.STAGE)
    shards = shard_folder.shard_paths(FINGERPRINTS, manifest, fingerprint.SUFFIX)
    corpus = Corpus(source, shards, manifest.clips_per_shard)
    criteria = MatchCriteria.for_front_end(max_bit_error, min_overlap_s, corpus.log_mel())
    task = read_task(Path("data/hear", name))
    result = find_leaks(task, corpus, criteria, workers, stage.work_folder())
    with stage.output(f"reports/leaks/{name}.json", file=True) as path:
        table.write(path, result)
    counts = len(result.leaks), result.clips, result.files
    logger.info("%s: %d of %d clips are among the %d test files", name, *counts)


if __name__ == "__main__":
    (name,) = arguments("<task>")
    run("leaks", partial(main, name=name), name)
