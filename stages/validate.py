"""Stage `validate`: stop wrong parameters before any work.

Reads   params.yaml, the names of the HEAR tasks at hand, the labels of those to be probed, whether
        packages and weights of the models in hear.models are here
Writes  reports/config.ok, a constant, so that a valid change re-runs only what depends on it
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline import baselines
from pipeline.hear_tasks import find_task, read_task
from pipeline.params.config import load_config
from pipeline.stage import Stage, arguments, run


def main(stage: Stage) -> None:
    """Run the stage."""
    config = load_config()
    baselines.require(config.hear)
    if config.hear.folder:  # else the stages that fetch the tasks tell
        check_tasks(config.hear.folder, config.hear.tasks, config.probe.tasks)
    path = Path("reports/config.ok")
    path.parent.mkdir(exist_ok=True)
    path.write_text("params.yaml is valid\n")


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


if __name__ == "__main__":
    run("validate", main, *arguments())
