"""The leaks found for each task, and which clips to exclude because of them.

reports/leaks/<task>.json    {"task", "files", "unchecked", "clips", "leaks": [...]}: `TaskLeaks`
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

STAGE = "exclude"
STATUS = "leak"
SHOWN = 5  # clips that a message names


@dataclass(frozen=True)
class Leak:
    """A clip of the pre-training data that is in a test split."""

    clip_id: str
    split: str
    file: str
    how: str  # id: the same recording | audio: they sound the same
    offset_s: float | None = None  # audio: where in the clip the test file begins; may be negative
    similarity: float | None = None  # audio: share of equal bits; unrelated recordings: 0.5


class TaskLeaks(BaseModel):
    """Leaks of one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    files: int  # that the task is tested on
    unchecked: int  # too short or too quiet to compare audio
    clips: int  # of the pre-training data
    leaks: list[Leak]  # at most one per clip, in the order of the corpus

    @property
    def by(self) -> dict[str, int]:
        """Number of clips by how they were found."""
        return {how: sum(leak.how == how for leak in self.leaks) for how in ("id", "audio")}


def write(path: Path, result: TaskLeaks) -> None:
    """Write the result of a task."""
    content = {**dict(result), "leaks": [asdict(leak) for leak in result.leaks]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(folder: Path, tasks: Sequence[str]) -> list[TaskLeaks]:
    """Return the results of some tasks.

    Raises:
        FileNotFoundError: a task has none.
        ValueError: a file is broken.
    """
    return [_read(folder / f"{task}.json", task) for task in tasks]


def _read(path: Path, task: str) -> TaskLeaks:
    remedy = f"Run `dvc repro leaks@{task}`."
    try:
        result = TaskLeaks.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist. {remedy}") from None
    except ValidationError as error:
        raise ValueError(f"{path} is broken: {error.errors()[0]['msg']}. {remedy}") from None
    if result.task != task:
        raise ValueError(f"{path} belongs to task {result.task!r}. {remedy}")
    return result


def clips_to_exclude(results: Sequence[TaskLeaks], policy: str) -> list[str]:
    """Return the clips to exclude: all leaks, or none if `policy` is report.

    Raises:
        RuntimeError: `policy` is refuse, and there are leaks.
    """
    clips = sorted({leak.clip_id for result in results for leak in result.leaks})
    if policy == "refuse" and clips:
        raise RuntimeError(_refusal(results, len(clips)))
    return clips if policy == "exclude" else []


def _refusal(results: Sequence[TaskLeaks], total: int) -> str:
    lines = [
        f"  {result.task}: {len(result.leaks)}, for example "
        + ", ".join(f"{x.clip_id} ({x.split}/{x.file})" for x in result.leaks[:SHOWN])
        for result in results
        if result.leaks
    ]
    return "\n".join(
        [
            f"{total} clips of the pre-training data are in test splits (leaks.policy = refuse):",
            *lines,
            "reports/leaks lists them all. Set leaks.policy to exclude, which pre-trains without "
            "them, remove them from the source, or remove the task from hear.tasks.",
        ]
    )


def mark(ledger: pd.DataFrame, clips: Collection[str]) -> pd.DataFrame:
    """Return the ledger with the excluded clips marked as leaks."""
    left_out = ledger["clip_id"].isin(set(clips)) & (ledger["status"] == "ok")
    marked = ledger.copy()
    values = [STATUS, STAGE, "it is in the test split of a task"]
    marked.loc[left_out, ["status", "stage", "reason"]] = values
    return marked
