"""Stage `leaks <task>`: which pre-training clips are in the test split of a HEAR task.

Reads   data/fingerprints, data/hear/<task>
Writes  reports/leaks/<task>.json
Params  source, leaks.max_bit_error, leaks.min_overlap_s
"""

import logging
import tempfile
from functools import partial
from itertools import chain
from pathlib import Path

from pipeline.core import params, shard_folder
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import Stage, arguments, run
from pipeline.features.params import LogMelParams
from pipeline.hear.tasks.task import Task, read_task
from pipeline.leaks import fingerprint, search, table
from pipeline.leaks.search import CLIPS_PER_JOB, FILES_PER_JOB, FilesJob, Index, SearchJob
from pipeline.parallel.processes import map_shards

logger = logging.getLogger(__name__)

CORPUS = Path("data/fingerprints")


def main(stage: Stage, name: str) -> None:
    """Run the stage."""
    source = stage.value("source")
    max_bit_error = stage.value("leaks.max_bit_error")
    min_overlap_s = stage.value("leaks.min_overlap_s")
    workers = params.load("compute", ComputeParams).local_workers
    given = shard_folder.verify(CORPUS, fingerprint.SUFFIX, fingerprint.STAGE)
    paths = shard_folder.shard_paths(CORPUS, given, fingerprint.SUFFIX)
    log_mel = fingerprint.read(paths[0]).log_mel
    limit = search.limits(max_bit_error, min_overlap_s, log_mel)

    task = read_task(Path("data/hear", name))
    files = search.tested_files(task)
    index = index_of(task, log_mel, workers)
    with tempfile.TemporaryDirectory(dir=stage.work_folder()) as scratch:
        index.save(Path(scratch))
        step = -(-CLIPS_PER_JOB // given.clips_per_shard)
        parts = [paths[i : i + step] for i in range(0, len(paths), step)]
        jobs = [SearchJob(part, Path(scratch), limit) for part in parts]
        matches = chain.from_iterable(map_shards(search.search_shards, jobs, workers, name))
        by_audio = search.leaks_by_audio(list(matches), files, log_mel)
    clip_ids = list(chain.from_iterable(fingerprint.read(path).clip_id for path in paths))
    by_id = search.leaks_by_id(clip_ids, source, name, files)
    of_clip = {leak.clip_id: leak for leak in [*by_audio, *by_id]}
    found = table.Found(
        task=name,
        files=len(files),
        unchecked=search.unchecked(index, limit),
        clips=len(clip_ids),
        leaks=[of_clip[clip_id] for clip_id in clip_ids if clip_id in of_clip],
    )
    with stage.output(f"reports/leaks/{name}.json", file=True) as path:
        table.write(path, found)
    counts = len(found.leaks), found.clips, found.files
    logger.info("%s: %d of %d clips are among the %d test files", name, *counts)


def index_of(task: Task, log_mel: LogMelParams, workers: int) -> Index:
    """Return the index of a task's test files."""
    files = search.tested_files(task)
    paths = [task.audio(log_mel.sample_rate, split) / name for split, name in files]
    parts = [paths[i : i + FILES_PER_JOB] for i in range(0, len(paths), FILES_PER_JOB)]
    jobs = [FilesJob(part, log_mel) for part in parts]
    done = map_shards(search.fingerprint_files, jobs, workers, "test files")
    return search.build_index(list(chain.from_iterable(done)))


if __name__ == "__main__":
    (name,) = arguments("<task>")
    run("leaks", partial(main, name=name), name)
