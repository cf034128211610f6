"""Stage `score <task> <model>`: scores of one task's embeddings by HEAR's protocol.

Reads   data/embeddings/<model>/<task> (a model of `hear.models`)
Writes  reports/scores/<model>/<task>.json
Params  score
"""

import json
import logging
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.core import params
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import Stage, arguments, run
from pipeline.hear.params import BASELINES, TRAINED
from pipeline.hear.score import scores
from pipeline.hear.score.params import ScoreParams
from pipeline.hear.tasks.task import read_task

logger = logging.getLogger(__name__)


def main(stage: Stage, name: str, model_name: str) -> None:
    """Run the stage."""
    score_params = stage.load("score", ScoreParams)
    device = params.load("compute", ComputeParams).device
    embeddings = Path("data/embeddings", model_name, name)
    metric = read_task(embeddings).metadata.evaluation[0]
    with (
        stage.output(f"reports/scores/{model_name}/{name}.json", file=True) as report,
        TemporaryDirectory(dir=stage.work_folder()) as scratch,
    ):
        results = scores.score(embeddings, Path(scratch), score_params, device)
        summary = scores.summarize_seeds(results, name, model_name, metric, score_params)
        report.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    score, note = summary["score"], summary["notes"].get("score")
    logger.info("%s, %s: %s = %s", name, model_name, metric, note if score is None else score)


if __name__ == "__main__":
    name, model_name = arguments("<task>", "|".join((*TRAINED, *BASELINES)))
    run("score", partial(main, name=name, model_name=model_name), name, model_name)
