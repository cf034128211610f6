"""Stage `validate`: stop wrong parameters before any work.

Reads   params.yaml, the names of the HEAR tasks at hand, the labels of those to be probed, whether
        packages and weights of the models in hear.models are here
Writes  reports/config.ok, a constant, so that a valid change re-runs only what depends on it
"""

import os
import time
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from pipeline.config import load_config
from pipeline.core.params import PARAMS_FILE
from pipeline.core.stage import Stage, arguments, run
from pipeline.hear.models import baselines
from pipeline.hear.tasks.task import find_task, read_task
from pipeline.report.paper.columns import PAPER_TASKS

DVC_EXPERIMENT = "DVC_EXP_NAME"  # set by `dvc exp run` alone
HEAR_RECORD = 6332517  # on Zenodo, HEAR 2021.3
BEEHIVE = {f"beehive_states_fold{fold}-v2-full" for fold in (0, 1)}  # that the paper leaves out


def main(stage: Stage) -> None:
    """Run the stage."""
    mark_as_edited(PARAMS_FILE)
    config = load_config()
    baselines.require_installed(config.hear)
    if config.hear.folder:
        check_tasks(config.hear.folder, config.hear.tasks, config.probe.tasks)
    elif config.hear.sources.zenodo.record == HEAR_RECORD:  # of another, `hear_tasks` tells
        check_published(config.hear.tasks)
    path = Path("reports/config.ok")
    path.parent.mkdir(exist_ok=True)
    path.write_text("params.yaml is valid\n")


def mark_as_edited(path: Path) -> None:
    """Let Git see that `dvc exp run -S` has written a file.

    It does so within the second in which Git's index has noted the time of the old content, and
    often leaves the size as it is; Git looks at no more than seconds and size.
    """
    if DVC_EXPERIMENT in os.environ:
        later = max(time.time(), path.stat().st_mtime + 1)
        os.utime(path, (later, later))


def check_tasks(folder: Path, tasks: Sequence[str], probed: Sequence[str]) -> None:
    """Check that the tasks are there, and those to be probed of the right kind.

    Raises:
        ValueError: they are not.
    """
    for name in tasks:
        find_task(folder, name)
    for name in probed:
        if read_task(folder / name).metadata.embedding_type == "event":
            raise ValueError(
                f"probe.tasks: {name} is an event task, and only scene tasks are probed. Remove it "
                "from probe.tasks; it can stay in hear.tasks."
            )


def check_published(tasks: Sequence[str]) -> None:
    """Check that HEAR's record has the tasks, without asking it.

    Raises:
        ValueError: it has not.
    """
    known = sorted(PAPER_TASKS | BEEHIVE)
    for name in tasks:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known)}."
            raise ValueError(
                f"hear.tasks: {name!r} is no task of Zenodo's record {HEAR_RECORD}: {hint} Correct "
                "it; for a task of your own, use hear.source = folder or set "
                "hear.sources.zenodo.record to the record that has it."
            )


if __name__ == "__main__":
    run("validate", main, *arguments())
