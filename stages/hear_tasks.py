"""Stage `hear_tasks <task>`: one HEAR task, checked, at the sample rate of the front end.

Reads   data/<hear.source>/tasks/<task>
Writes  data/hear/<task>
Params  hear.source, logmel.sample_rate
"""

import logging
from functools import partial
from pathlib import Path

from pipeline.hear_audio import publish_task
from pipeline.hear_tasks import find_task, read_task
from pipeline.stage import Stage, arguments, run

logger = logging.getLogger(__name__)


def main(stage: Stage, name: str) -> None:
    """Run the stage."""
    source = Path("data", stage.value("hear.source"), "tasks")
    sample_rate = stage.value("logmel.sample_rate")
    task = read_task(find_task(source, name))
    with stage.output(f"data/hear/{name}") as folder:
        publish_task(task, folder, sample_rate)
    clips = {split: len(files) for split, files in task.labels.items()}
    logger.info("%s: %s task, clips %s", name, task.metadata.embedding_type, clips)


if __name__ == "__main__":
    (name,) = arguments("<task>")
    run("hear_tasks", partial(main, name=name), name)
