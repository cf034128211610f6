"""The page about a run: its numbers, and their layout by `report.html.j2`.

The page is one file that loads nothing: figures are inline SVG. The template only lays out what
`render` gives it.
"""

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipeline.report import figures
from pipeline.report.data_summary import summarize_data
from pipeline.report.inputs import Pretraining
from pipeline.report.paper import rendering
from pipeline.report.probe_table import ProbeTable
from pipeline.report.results import Results
from pipeline.report.run_summary import (
    installed_versions,
    summarize_correlation,
    summarize_loss,
    summarize_runtimes,
)
from pipeline.report.score_file import MODEL_NAMES
from pipeline.report.templating import load_template

ENCODER_NAMES = {"audiontt": "AudioNTT", "vitc": "ViT_C", "vit": "ViT"}
OPTIMIZER_NAMES = {"lars": "LARS", "adamw": "AdamW"}
MAX_REASONS = 20


def render(results: Results) -> str:
    """Return the page."""
    run, scores, probe = results.pretraining, results.scores, results.probe
    tasks = [row.task for row in scores.rows]
    return load_template("report.html.j2").render(
        encoder=ENCODER_NAMES.get(run.encoder, run.encoder),
        encoder_settings=run.encoder_params,
        optimizer=OPTIMIZER_NAMES.get(run.optimizer["name"], run.optimizer["name"]),
        learning_rate=run.optimizer["lr"],
        scores=scores,
        model_names=MODEL_NAMES,
        paper=results.paper,
        paper_cells=rendering.cells,
        paper_header=rendering.header,
        data=summarize_data(results.ledger),
        leaks=results.leaks,
        label_names=results.label_names,
        loss=summarize_loss(run.history, run.epochs),
        steps=int(run.epochs["step"].iloc[-1]),
        correlation={name: summarize_correlation(c) for name, c in run.correlation.items()},
        params=results.params,
        stages=summarize_runtimes(results.runtimes, tasks, probe.tasks, scores.models),
        probe=probe,
        versions=installed_versions(),
        svg=draw_curves(run),
        probe_svg=draw_probe(probe),
        clips=draw_clips(run, results.ledger, results.params["report.clips"]),
        max_reasons=MAX_REASONS,
    )


def draw_curves(run: Pretraining) -> dict[str, Markup]:
    """Draw the curves of pre-training and the cross-correlation before and after it."""
    svg = {
        "loss": figures.learning_curves(run.history),
        **figures.telemetry(run.history, run.epochs, run.throughput),
        "before": figures.correlation_map(run.correlation["before"], "before"),
        "after": figures.correlation_map(run.correlation["after"], "after"),
    }
    return {name: Markup(text) for name, text in svg.items()}


def draw_probe(probe: ProbeTable) -> dict[str, Markup]:
    """Draw the curve of each probed task."""
    return {
        task: Markup(figures.probe(curve, probe.best, f"probe-{number}"))
        for number, (task, curve) in enumerate(probe.curves.items())
    }


def draw_clips(run: Pretraining, ledger: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    """Draw clips from all over the examples; colors mean the same in all of them."""
    labels = dict(zip(ledger["clip_id"], ledger["labels"], strict=True))
    available = len(run.clip_ids)
    chosen = np.arange(min(count, available)) * available // min(count, available)
    limits = figures.color_limits(run.pictures[chosen])
    return [
        {
            "id": run.clip_ids[i],
            "labels": [x for x in labels.get(run.clip_ids[i], "").split(",") if x],
            "svg": Markup(
                figures.clip_and_views(run.pictures[i], limits, run.log_mel, f"clip-{i}")
            ),
        }
        for i in chosen
    ]
