"""What became of the clips: how many were requested, obtained and lost, and why."""

from dataclasses import dataclass

import pandas as pd

from pipeline.leaks import table as leak_table

DATA_STAGES = ["download", "resample", "logmel"]
LEDGER_STAGES = [*DATA_STAGES, leak_table.STAGE]
MAX_EXAMPLES, MAX_LABELS = 3, 10


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
    """What was requested, what was obtained and what failed."""

    requested: int
    requested_hours: float
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
        requested=len(ledger),
        requested_hours=float((ledger["end_s"] - ledger["start_s"]).sum()) / 3600,
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


def _failures(failed: pd.DataFrame) -> list[Failure]:
    """Group by reason, most frequent first."""
    pairs = zip(failed["reason"], failed["clip_id"], strict=True)
    reasons = [_without_ids(reason, clip_id) for reason, clip_id in pairs]
    groups = failed.assign(reason=reasons).groupby(["stage", "status", "reason"])["clip_id"]
    failures = [
        Failure(stage, status, reason, len(ids), ", ".join(ids.head(MAX_EXAMPLES)))
        for (stage, status, reason), ids in groups
    ]
    return sorted(failures, key=lambda f: (-f.clips, _stage_order(f.stage), f.status, f.reason))


def _without_ids(reason: str, clip_id: str) -> str:
    """Remove a clip's ids from a reason, so that the same reason of two clips reads the same."""
    recording_id = clip_id.rpartition("_")[0]
    return reason.replace(clip_id, "…").replace(recording_id or clip_id, "…")


def _stage_order(stage: str) -> int:
    return LEDGER_STAGES.index(stage) if stage in LEDGER_STAGES else len(LEDGER_STAGES)
