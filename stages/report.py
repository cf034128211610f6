"""Stage `report`: scores, curves and data of a run as one page and as metrics for DVC.

Reads   data/ledger.csv, data/excluded.csv, data/pretrained, reports/throughput.csv,
        reports/leaks/<task>.json, reports/probe/<task>.csv, reports/scores/<model>/<task>.json,
        names of labels
Writes  reports/index.html, reports/metrics.json, reports/scores.csv, reports/probe.csv;
        reports/tables.md, reports/tables.csv, reports/leaderboard.csv
Params  all that a result depends on: the page shows them
"""

import json
import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from pipeline.core.stage import Stage, arguments, run, runtimes
from pipeline.features import excluded
from pipeline.hear.params import HearParams, ProbeParams
from pipeline.hear.score.params import ScoreParams
from pipeline.leaks import table as leak_table
from pipeline.pretrain.params import PretrainParams
from pipeline.report import inputs, probe_table, score_table
from pipeline.report import page as report_page
from pipeline.report.lineage import Lineage
from pipeline.report.paper import tables as paper_tables
from pipeline.report.params import ReportParams
from pipeline.report.probe_table import ProbeTable
from pipeline.report.score_table import ScoreTable

logger = logging.getLogger(__name__)

LEDGER = Path("data/ledger.csv")
EXCLUDED = Path("data/excluded.csv")
LEAKS = Path("reports/leaks")
PRETRAIN = Path("data/pretrained")
THROUGHPUT = Path("reports/throughput.csv")
PROBE = Path("reports/probe")
SCORES = Path("reports/scores")
PAGE = "reports/index.html"
METRICS = "reports/metrics.json"
TABLE = "reports/scores.csv"
CURVE = "reports/probe.csv"
TABLES = "reports/tables.md"
TABLES_CSV = "reports/tables.csv"
LEADERBOARD = "reports/leaderboard.csv"


def main(stage: Stage) -> None:
    """Run the stage."""
    stage.load("report", ReportParams)
    hear, protocol = stage.load("hear", HearParams), stage.load("score", ScoreParams)
    pretrain, probed = stage.load("pretrain", PretrainParams), stage.load("probe", ProbeParams)
    encoder = load_shown_values(stage)

    usable = partial(is_current, lineage=Lineage())
    table = score_table.read_table(SCORES, hear.tasks, protocol, hear.models, usable)
    epochs = pretrain.epochs, pretrain.snapshot_epochs
    probe = probe_table.read_probe(PROBE, probed.tasks, *epochs, usable)
    pretraining = inputs.read_pretraining(PRETRAIN, encoder, THROUGHPUT)
    ledger = inputs.read_ledger(LEDGER)
    ledger = leak_table.mark(ledger, excluded.read(EXCLUDED))
    compared = [task for task in hear.tasks if (LEAKS / f"{task}.json").exists()]
    leaks = leak_table.read(LEAKS, compared)
    names = inputs.read_label_names(Path("data", stage.value("source"), "labels.csv"))
    left_out = int((ledger["status"] == leak_table.STATUS).sum())
    paper = paper_tables.compare(table, report_page.flatten(stage.values), left_out)
    page = report_page.render(
        pretraining, table, paper, probe, ledger, leaks, names, stage.values, runtimes()
    )
    loss = report_page.summarize_loss(pretraining.history, pretraining.epochs)["after"]["loss"]
    metrics = json.dumps(score_table.metrics(table, loss, paper.means), indent=2) + "\n"

    texts = {
        PAGE: page,
        METRICS: metrics,
        TABLE: score_table.to_csv(table),
        CURVE: probe.means.to_csv(),
        TABLES: paper_tables.to_markdown(paper),
        TABLES_CSV: paper_tables.to_csv(paper.tables),
        LEADERBOARD: paper.leaderboard,
    }
    write(stage, texts)
    tell(table, probe)
    logger.info("see %s", PAGE)


def write(stage: Stage, texts: dict[str, str]) -> None:
    """Write the outputs, which appear when all are complete."""
    with ExitStack() as outputs:
        for target, text in texts.items():
            path = outputs.enter_context(stage.output(target, file=True))
            path.write_text(text, encoding="utf-8")


def is_current(path: Path, lineage: Lineage) -> bool:
    """Return whether there is a file of the present parameters; log it if there is an older one."""
    why = lineage.why_outdated(path) if path.exists() else ""
    if why:
        logger.warning("%s is of an earlier run and left out: %s.", path, why)
    return path.exists() and not why


def tell(table: ScoreTable, probe: ProbeTable) -> None:
    """Log the results, and what is missing of them."""
    for model in table.models:
        name = score_table.MODEL_NAMES[model]
        if reason := table.why_no_mean(model):
            logger.warning("No mean score of %s: %s.", name, reason)
        else:
            logger.info("mean score of %s: %.3f", name, table.mean(model))
    if probe.missing_tasks:
        logger.warning("No probe of %s.", ", ".join(probe.missing_tasks))
    if probe.missing_epochs:
        epochs = ", ".join(map(str, probe.missing_epochs))
        logger.warning("The probe has no encoder of epochs %s: snapshots are missing.", epochs)
    if probe.curves:
        logger.info("best epoch by the probe: %d, %s", probe.best, probe.folder(probe.best))


def load_shown_values(stage: Stage) -> str:
    """Read the parameters that the page only shows or compares; return the encoder's name."""
    source, encoder = stage.value("source"), stage.value("encoder")
    stage.value(f"sources.{source}")
    stage.value("download")
    stage.value("resample")
    stage.value("logmel")
    stage.value("leaks")
    stage.value(f"encoders.{encoder}")
    stage.value("augment")
    stage.value("projector")
    stage.value("loss")
    return str(encoder)


if __name__ == "__main__":
    run("report", main, *arguments())
