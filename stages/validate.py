"""Stage `validate`: stop wrong parameters before any work.

Reads   params.yaml, the names of the HEAR tasks in the folder, the labels of those to be probed,
        and whether the packages and weights of the models in hear.models are installed
Writes  reports/config.ok, a constant, so that a valid change re-runs only what depends on it
"""

import os
import time
from pathlib import Path

from pipeline.config import load_config
from pipeline.core.params import PARAMS_FILE
from pipeline.core.stage import Stage, arguments, run
from pipeline.hear.models import baselines
from pipeline.hear.tasks.selection import HEAR_RECORD, check_folder_tasks, check_published_tasks

DVC_EXPERIMENT = "DVC_EXP_NAME"  # set only by `dvc exp run`


def main(stage: Stage) -> None:
    """Run the stage."""
    mark_as_edited(PARAMS_FILE)
    config = load_config()
    baselines.require_installed(config.hear)
    if config.hear.folder:
        check_folder_tasks(config.hear.folder, config.hear.tasks, config.probe.tasks)
    elif config.hear.sources.zenodo.record == HEAR_RECORD:  # `hear_tasks` checks other records
        check_published_tasks(config.hear.tasks)
    path = Path("reports/config.ok")
    path.parent.mkdir(exist_ok=True)
    path.write_text("params.yaml is valid\n")


def mark_as_edited(path: Path) -> None:
    """Let Git see that `dvc exp run -S` has written a file.

    DVC often writes it within the second that Git's index recorded for the old content, and the
    size often stays the same. Git compares only seconds and size.
    """
    if DVC_EXPERIMENT in os.environ:
        later = max(time.time(), path.stat().st_mtime + 1)
        os.utime(path, (later, later))


if __name__ == "__main__":
    run("validate", main, *arguments())
