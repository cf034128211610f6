"""Stage `exclude`: the list of clips that pre-training leaves out because they are in test splits.

Reads   reports/leaks/<task>.json
Writes  data/excluded.csv
Params  leaks.policy, hear.tasks
"""

import logging
from pathlib import Path

from pipeline.core.stage import Stage, arguments, run
from pipeline.features import excluded
from pipeline.leaks import table

logger = logging.getLogger(__name__)

RESULTS = Path("reports/leaks")


def main(stage: Stage) -> None:
    """Run the stage."""
    policy, tasks = stage.value("leaks.policy"), stage.value("hear.tasks")
    results = table.read(RESULTS, tasks)
    clips = table.clips_to_exclude(results, policy)
    with stage.output("data/excluded.csv", file=True) as path:
        excluded.write(path, clips)
    for result in results:
        logger.info("%s: %d clips are in its test split", result.task, len(result.leaks))
    logger.info("%d clips are left out (leaks.policy = %s)", len(clips), policy)


if __name__ == "__main__":
    run("exclude", main, *arguments())
