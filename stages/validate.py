"""Stage `validate`: stop wrong parameters before any work.

Reads   params.yaml, the names of the HEAR tasks at hand
Writes  reports/config.ok, a constant, so that a valid change re-runs only what depends on it
"""

from pathlib import Path

from pipeline.hear_tasks import find_task
from pipeline.params.config import load_config
from pipeline.stage import Stage, arguments, run


def main(stage: Stage) -> None:
    """Run the stage."""
    hear = load_config().hear
    for task in hear.tasks:
        find_task(Path("data", hear.source, "tasks"), task)
    path = Path("reports/config.ok")
    path.parent.mkdir(exist_ok=True)
    path.write_text("params.yaml is valid\n")


if __name__ == "__main__":
    run("validate", main, *arguments())
