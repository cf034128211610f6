"""Stage `report`: scores, curves and data of a run as one page and as metrics for DVC.

Reads   data/ledger.csv, data/pretrain, reports/scores/<model>/<task>.json, names of labels
Writes  reports/index.html, reports/metrics.json, reports/scores.csv
Params  all that a result depends on: the page shows them
"""

import json
import logging
from contextlib import ExitStack
from pathlib import Path

from pipeline import report, report_inputs, score_table
from pipeline.params.hear import HearParams, ReportParams, ScoreParams
from pipeline.stage import Stage, arguments, run, runtimes

logger = logging.getLogger(__name__)

LEDGER = Path("data/ledger.csv")
PRETRAIN = Path("data/pretrain")
SCORES = Path("reports/scores")
PAGE = "reports/index.html"
METRICS = "reports/metrics.json"
TABLE = "reports/scores.csv"


def main(stage: Stage) -> None:
    """Run the stage."""
    stage.load("report", ReportParams)
    hear, protocol = stage.load("hear", HearParams), stage.load("score", ScoreParams)
    encoder = load_shown_values(stage)

    table = score_table.read_table(SCORES, hear.tasks, protocol)
    pretraining = report_inputs.read_pretraining(PRETRAIN, encoder)
    ledger = report_inputs.read_ledger(LEDGER)
    names = report_inputs.read_label_names(Path("data", stage.value("source"), "labels.csv"))
    page = report.render(pretraining, table, ledger, names, stage.values, runtimes())
    loss = report.summarize_loss(pretraining.history)["after"]["loss"]
    metrics = json.dumps(score_table.metrics(table, loss), indent=2) + "\n"

    texts = {PAGE: page, METRICS: metrics, TABLE: score_table.to_csv(table)}
    with ExitStack() as outputs:
        for target, text in texts.items():
            outputs.enter_context(stage.output(target, file=True)).write_text(
                text, encoding="utf-8"
            )
    for name, model in score_table.MODEL_NAMES.items():
        if reason := table.why_no_mean(model):
            logger.warning("No mean score of the %s encoder: %s.", name, reason)
        else:
            logger.info("mean score of the %s encoder: %.3f", name, table.mean(model))
    logger.info("see %s", PAGE)


def load_shown_values(stage: Stage) -> str:
    """Read the parameters that the page shows and does not use; return the encoder's name."""
    source, encoder = stage.value("source"), stage.value("encoder")
    stage.value(f"sources.{source}")
    stage.value("download")
    stage.value("resample")
    stage.value("logmel")
    stage.value(f"encoders.{encoder}")
    stage.value("augment")
    stage.value("projector")
    stage.value("loss")
    stage.value("pretrain")
    return str(encoder)


if __name__ == "__main__":
    run("report", main, *arguments())
