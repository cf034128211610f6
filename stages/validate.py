"""Stage `validate`: stop wrong parameters before any work.

Reads   params.yaml, the HEAR tasks in the folder, whether there are data and no dangling links in
        data/<source>, and whether the packages and weights of the models in hear.models are
        installed
Writes  reports/config.ok, a constant, so that a valid change re-runs only what depends on it;
        reports/probed.json, the tasks to be probed; in a copy of the repository (`dvc exp run
        --queue`) links to data that only the main repository has
"""

import json
import os
import time
from pathlib import Path

from pipeline.config import Config, load_config
from pipeline.core.params import PARAMS_FILE
from pipeline.core.repository import link_missing, refuse_dangling_links
from pipeline.core.stage import Stage, arguments, run
from pipeline.corpus.data_folder import require_data
from pipeline.hear.models import baselines
from pipeline.hear.tasks import selection

REPORTS = Path("reports")
DVC_EXPERIMENT = "DVC_EXP_NAME"  # set only by `dvc exp run`


def main(stage: Stage) -> None:
    """Run the stage."""
    mark_as_edited(PARAMS_FILE)
    config = load_config()
    for folder in (Path("data", config.source), Path("data", config.hear.source, "tasks")):
        link_missing(folder)
        refuse_dangling_links(folder)
    config = load_config()  # relative paths may lead to what has just been linked
    require_data(config.source, getattr(config.sources, config.source))
    baselines.require_installed(config.hear)
    probed = probed_tasks(config)
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "probed.json").write_text(f"{json.dumps(probed)}\n", encoding="utf-8")
    (REPORTS / "config.ok").write_text("params.yaml is valid\n")


def probed_tasks(config: Config) -> list[str]:
    """Check the tasks and return those to be probed."""
    folder, tasks, probed = config.hear.folder, config.hear.tasks, config.probe.tasks
    if folder:
        selection.check_folder_tasks(folder, tasks, probed or [])
    elif config.hear.sources.zenodo.record == selection.HEAR_RECORD:  # else `hear_tasks` checks
        selection.check_published_tasks(tasks)
    return selection.choose_probed(folder, tasks) if probed is None else probed


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
