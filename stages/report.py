"""Stage `report`: scores, curves and data of a run as one page and as metrics for DVC.

Reads   data/ledger.csv, data/excluded.csv, data/pretrained, reports/throughput.csv,
        reports/leaks/<task>.json, reports/probed.json, reports/probe/<task>.csv,
        reports/scores/<model>/<task>.json, names of labels
Writes  reports/index.html, reports/metrics.json, reports/scores.csv, reports/probe.csv;
        reports/tables.md, reports/tables.csv, reports/leaderboard.csv
Params  all that a result depends on: the page shows them
"""

import json
import logging
from contextlib import ExitStack
from pathlib import Path

from pipeline.core.stage import Stage, arguments, run, runtimes
from pipeline.features import excluded
from pipeline.hear.params import HearParams, ProbeParams
from pipeline.hear.score.params import ScoreParams
from pipeline.leaks import table as leak_table
from pipeline.pretrain.params import PretrainParams
from pipeline.report import inputs
from pipeline.report.lineage import Lineage
from pipeline.report.outputs import log_probe, log_scores, report_files
from pipeline.report.params import ReportParams
from pipeline.report.probe_table import read_probe
from pipeline.report.results import Results, flatten
from pipeline.report.score_table import read_table

logger = logging.getLogger(__name__)

DATA, REPORTS = Path("data"), Path("reports")


def main(stage: Stage) -> None:
    """Run the stage."""
    results = read_results(stage)
    files = report_files(results, REPORTS)
    with ExitStack() as outputs:  # which appear when all are complete
        for target, text in files.items():
            path = outputs.enter_context(stage.output(target.as_posix(), file=True))
            path.write_text(text, encoding="utf-8")
    log_scores(results.scores)
    log_probe(results.probe)
    logger.info("see %s", REPORTS / "index.html")


def read_results(stage: Stage) -> Results:
    """Read the outputs of all stages; scores and probes of earlier parameters are left out."""
    hear, protocol = stage.load("hear", HearParams), stage.load("score", ScoreParams)
    pretrain = stage.load("pretrain", PretrainParams)
    stage.load("probe", ProbeParams)
    probed = json.loads((REPORTS / "probed.json").read_bytes())
    source, encoder = stage.value("source"), stage.value("encoder")
    stage.load("report", ReportParams)
    stage.record(f"sources.{source}", "download", "resample", "logmel", "leaks")
    stage.record(f"encoders.{encoder}", "augment", "projector", "loss")
    is_current = Lineage().is_current
    ledger = inputs.read_ledger(DATA / "ledger.csv")
    leaks = REPORTS / "leaks"
    return Results(
        pretraining=inputs.read_pretraining(
            DATA / "pretrained", encoder, REPORTS / "throughput.csv"
        ),
        scores=read_table(REPORTS / "scores", hear.tasks, protocol, hear.models, is_current),
        probe=read_probe(
            REPORTS / "probe", probed, pretrain.epochs, pretrain.snapshot_epochs, is_current
        ),
        ledger=leak_table.mark(ledger, excluded.read(DATA / "excluded.csv")),
        leaks=leak_table.read(leaks, [t for t in hear.tasks if (leaks / f"{t}.json").exists()]),
        label_names=inputs.read_label_names(DATA / source / "labels.csv"),
        params=flatten(stage.values),
        runtimes=runtimes(),
    )


if __name__ == "__main__":
    run("report", main, *arguments())
