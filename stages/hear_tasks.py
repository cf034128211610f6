"""Stage `hear_tasks <task>`: check one HEAR task and resample it to the front end's rate.

Reads   <hear.sources.<source>.path>/<task>, or its archive in a Zenodo record
Writes  data/hear/<task>
Params  hear.source, hear.sources.<source>, hear.max_file_mb, logmel.sample_rate
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core import params
from pipeline.core.settings import NetworkParams
from pipeline.core.stage import Stage, arguments, run
from pipeline.hear.fetch import zenodo
from pipeline.hear.fetch.archive import unpack_task
from pipeline.hear.params import TASK_SOURCES
from pipeline.hear.tasks.audio import publish_task
from pipeline.hear.tasks.task import find_task, read_task

logger = logging.getLogger(__name__)


def main(stage: Stage, name: str) -> None:
    """Run the stage."""
    source = stage.value("hear.source")
    chosen: Any = stage.load(f"hear.sources.{source}", TASK_SOURCES[source])
    sample_rate = stage.value("logmel.sample_rate")
    max_bytes = 1e6 * stage.value("hear.max_file_mb")
    target = f"data/hear/{name}"
    if source == "zenodo":
        network = params.load("network", NetworkParams)
        with (
            zenodo.downloaded_archive(chosen, name, network) as archive,
            stage.output(target) as folder,
        ):
            task = unpack_task(archive, name, folder, sample_rate, max_bytes)
    else:
        task = read_task(find_task(Path(chosen.path), name))
        with stage.output(target) as folder:
            publish_task(task, folder, sample_rate, max_bytes)
    clips = {split: len(files) for split, files in task.labels.items()}
    logger.info("%s: %s task, clips %s", name, task.metadata.embedding_type, clips)


if __name__ == "__main__":
    (name,) = arguments("<task>")
    run("hear_tasks", partial(main, name=name), name)
