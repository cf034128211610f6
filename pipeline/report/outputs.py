"""The files of a report, and its summary in the log."""

import json
import logging
from pathlib import Path

from pipeline.report import html_page, score_table
from pipeline.report.paper import rendering
from pipeline.report.probe_table import ProbeTable
from pipeline.report.results import Results
from pipeline.report.run_summary import summarize_loss
from pipeline.report.score_file import MODEL_NAMES
from pipeline.report.score_table import ScoreTable

logger = logging.getLogger(__name__)


def report_files(results: Results, folder: Path) -> dict[Path, str]:
    """Return the text of every file of the report by its path."""
    run, scores, paper = results.pretraining, results.scores, results.paper
    loss = summarize_loss(run.history, run.epochs)["after"]["loss"]
    metrics = score_table.metrics(scores, loss, paper.means)
    texts = {
        "index.html": html_page.render(results),
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "scores.csv": score_table.to_csv(scores),
        "probe.csv": results.probe.means.to_csv(),
        "tables.md": rendering.to_markdown(paper),
        "tables.csv": rendering.to_csv(paper.tables),
        "leaderboard.csv": rendering.leaderboard(paper.pretrained),
    }
    return {folder / name: text for name, text in texts.items()}


def log_scores(table: ScoreTable) -> None:
    """Log the mean score of each model, or why there is none."""
    for model in table.models:
        if reason := table.why_no_mean(model):
            logger.warning("No mean score of %s: %s.", MODEL_NAMES[model], reason)
        else:
            logger.info("mean score of %s: %.3f", MODEL_NAMES[model], table.mean(model))


def log_probe(probe: ProbeTable) -> None:
    """Log the best epoch, and which curves and epochs are missing."""
    if probe.missing_tasks:
        logger.warning("No probe of %s.", ", ".join(probe.missing_tasks))
    if probe.missing_epochs:
        epochs = ", ".join(map(str, probe.missing_epochs))
        logger.warning("The probe has no encoder of epochs %s: snapshots are missing.", epochs)
    if probe.curves:
        logger.info("best epoch by the probe: %d, %s", probe.best, probe.folder(probe.best))
