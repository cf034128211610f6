"""The page about a run: its numbers, and their layout by `report.html.j2`.

The page is one file that loads nothing: figures are inline SVG. Its numbers are computed here and
in `score_table`; the template only lays them out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline.hear.params import TRAINED
from pipeline.leaks import table as leak_table
from pipeline.leaks.table import Found
from pipeline.report import figures, score_table
from pipeline.report.inputs import Pretraining
from pipeline.report.paper import tables
from pipeline.report.paper.tables import Comparison
from pipeline.report.probe_table import ProbeTable
from pipeline.report.score_table import ScoreTable

ENCODER_NAMES = {"audiontt": "AudioNTT", "vitc": "ViT_C", "vit": "ViT"}
OPTIMIZER_NAMES = {"lars": "LARS", "adamw": "AdamW"}
LOSS_COLUMNS = ["loss", "invariance", "redundancy", "noise_floor"]
DATA_STAGES = ["download", "resample", "logmel"]
LEDGER_STAGES = [*DATA_STAGES, leak_table.STAGE]
PACKAGES = ["torch", "torchaudio", "heareval", "pytorch-lightning", "numpy", "soxr", "h5py", "dvc"]
MAX_REASONS, MAX_EXAMPLES, MAX_LABELS = 20, 3, 10


@dataclass(frozen=True)
class Failure:
    """Clips that failed for one reason."""

    stage: str
    status: str
    reason: str
    clips: int
    examples: str


@dataclass(frozen=True)
class DataSummary:
    """What was asked for, what was obtained and what failed."""

    asked: int
    asked_hours: float
    obtained: int
    obtained_hours: float
    failed: list[tuple[str, str, int]]  # stage, class, clips
    failures: list[Failure]  # by reason, most frequent first
    labels: list[tuple[str, int]]  # of obtained clips, most frequent first
    n_labels: int


def summarize_data(ledger: pd.DataFrame) -> DataSummary:
    """Count the clips of a ledger by what became of them."""
    ok = ledger[ledger["status"] == "ok"]
    failed = ledger[ledger["status"] != "ok"]
    labels = ok["labels"].str.split(",").explode().value_counts()
    labels = labels[labels.index != ""].sort_index().sort_values(ascending=False, kind="stable")
    groups = failed.groupby(["stage", "status"]).size()
    return DataSummary(
        asked=len(ledger),
        asked_hours=float((ledger["end_s"] - ledger["start_s"]).sum()) / 3600,
        obtained=len(ok),
        obtained_hours=float(ok["duration_s"].sum()) / 3600,
        failed=sorted(
            ((stage, status, int(n)) for (stage, status), n in groups.items()),
            key=lambda group: (_stage_order(group[0]), -group[2], group[1]),
        ),
        failures=_failures(failed),
        labels=[(str(label), int(n)) for label, n in labels.head(MAX_LABELS).items()],
        n_labels=len(labels),
    )


def summarize_loss(history: pd.DataFrame, epochs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the loss and its parts `before` any update and `after`, the mean of the last epoch."""
    before = history[LOSS_COLUMNS].iloc[0]
    after = epochs.iloc[-1].reindex(LOSS_COLUMNS).fillna(before["noise_floor"])
    return {"before": before.to_dict(), "after": after.round(6).to_dict()}


def summarize_correlation(matrix: Float[np.ndarray, "D D"]) -> dict[str, float]:
    """Return the mean of the diagonal and the root mean square of all other entries."""
    others = matrix[~np.eye(len(matrix), dtype=bool)].astype(np.float64)
    return {"diagonal": float(np.diag(matrix).mean()), "others": float(np.sqrt((others**2).mean()))}


def summarize_runtimes(
    runtimes: dict[str, float],
    tasks: Sequence[str],
    probed: Sequence[str] = (),
    models: Sequence[str] = TRAINED,
) -> list[dict[str, Any]]:
    """Return for each stage how many of its instances ran here and how long they took together."""
    instances = {name: [name] for name in ("validate", *DATA_STAGES, "baselines")}
    instances["hear_tasks"] = [f"hear_tasks-{task}" for task in tasks]
    instances["fingerprint"] = ["fingerprint"]
    instances["leaks"] = [f"leaks-{task}" for task in tasks]
    instances |= {name: [name] for name in ("exclude", "pretrain")}
    for name in ("embed", "score"):
        instances[name] = [f"{name}-{task}-{model}" for task in tasks for model in models]
    if probed:
        instances["probe"] = [f"probe-{task}" for task in probed]
    rows = []
    for name, expected in instances.items():
        seconds = [runtimes[instance] for instance in expected if instance in runtimes]
        rows.append({"stage": name, "of": len(expected), "n": len(seconds), "s": sum(seconds)})
    return rows


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested parameters under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def render(
    run: Pretraining,
    table: ScoreTable,
    paper: Comparison,
    probe: ProbeTable,
    ledger: pd.DataFrame,
    leaks: Sequence[Found],
    label_names: dict[str, str],
    values: dict[str, Any],
    runtimes: dict[str, float],
) -> str:
    """Return the page.

    Args:
        ledger: with the clips marked that pre-training left out.
        label_names: names of labels by id; a label without one is shown as its id.
        values: the parameters of the run by key, as a stage has read them.
        runtimes: seconds by instance of a stage; none is needed.
    """
    params = flatten(values)
    return template("report.html.j2").render(
        encoder=ENCODER_NAMES.get(run.encoder, run.encoder),
        encoder_settings=run.encoder_params,
        optimizer=OPTIMIZER_NAMES.get(run.optimizer["name"], run.optimizer["name"]),
        learning_rate=run.optimizer["lr"],
        table=table,
        model_names=score_table.MODEL_NAMES,
        paper=paper,
        paper_cells=tables.cells,
        paper_header=tables.header,
        paper_origin=tables.origin,
        data=summarize_data(ledger),
        leaks=leaks,
        label_names=label_names,
        loss=summarize_loss(run.history, run.epochs),
        steps=int(run.epochs["step"].iloc[-1]),
        correlation={name: summarize_correlation(c) for name, c in run.correlation.items()},
        params=params,
        stages=summarize_runtimes(
            runtimes, [row.task for row in table.rows], probe.tasks, table.models
        ),
        probe=probe,
        versions=installed_versions(),
        svg=draw(run),
        probe_svg=draw_probe(probe),
        clips=draw_clips(run, ledger, params["report.clips"]),
        max_reasons=MAX_REASONS,
    )


def draw(run: Pretraining) -> dict[str, Markup]:
    """Draw the page's single figures."""
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


def as_yaml(value: Any) -> str:
    """Write a parameter as params.yaml does; a list as its items."""
    if isinstance(value, list):
        return ", ".join(map(as_yaml, value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def signed(value: float, digits: int = 0) -> str:
    """Write a number with its sign: "+17", "−3"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Write seconds as "4.2 s", "3 min 20 s" or "2 h 5 min"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    return f"{hours} h {rest_minutes} min" if hours else f"{minutes} min {rest} s"


def share(part: int, whole: int) -> str:
    """Write a part as percent of the whole."""
    return f"{100 * part / whole:.1f}%"


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages on which results depend, without importing them."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return {name: installed(name) for name in PACKAGES}


def template(name: str) -> Template:
    """Return a page's layout, one of `templates`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {"signed": signed, "duration": duration, "share": share, "as_yaml": as_yaml}
    environment.filters |= filters
    return environment.get_template(name)


def _failures(failed: pd.DataFrame) -> list[Failure]:
    """Group by reason, most frequent first."""
    pairs = zip(failed["reason"], failed["clip_id"], strict=True)
    reasons = [_without_names(reason, clip_id) for reason, clip_id in pairs]
    groups = failed.assign(reason=reasons).groupby(["stage", "status", "reason"])["clip_id"]
    found = [
        Failure(stage, status, reason, len(ids), ", ".join(ids.head(MAX_EXAMPLES)))
        for (stage, status, reason), ids in groups
    ]
    return sorted(found, key=lambda f: (-f.clips, _stage_order(f.stage), f.status, f.reason))


def _without_names(reason: str, clip_id: str) -> str:
    """Remove what tells apart the same reason of two clips: their ids."""
    recording_id = clip_id.rpartition("_")[0]
    return reason.replace(clip_id, "…").replace(recording_id or clip_id, "…")


def _stage_order(stage: str) -> int:
    return LEDGER_STAGES.index(stage) if stage in LEDGER_STAGES else len(LEDGER_STAGES)
