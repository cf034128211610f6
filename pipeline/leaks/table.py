"""What the search for leaks has found, and what is done about it.

reports/leaks/<task>.json    {"task", "files", "unchecked", "clips", "leaks": [{...}]}; see `TaskLeaks`
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
    how: str  # id: of the same recording | audio: they sound the same
    offset_s: float | None = None  # audio: where in the clip the test file begins; may be negative
    similarity: float | None = None  # audio: share of equal bits, of unrelated recordings 0.5


class TaskLeaks(BaseModel):
    """Result of one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    files: int  # that the task is tested on
    unchecked: int  # too short or too quiet for a comparison of audio
    clips: int  # of the pre-training data
    leaks: list[Leak]  # one for each clip, in the order of the corpus

    @property
    def by(self) -> dict[str, int]:
        """Clips by how they were found."""
        return {how: sum(leak.how == how for leak in self.leaks) for how in ("id", "audio")}


def write(path: Path, found: TaskLeaks) -> None:
    """Write the result of a task."""
    content = {**dict(found), "leaks": [asdict(leak) for leak in found.leaks]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(folder: Path, tasks: Sequence[str]) -> list[TaskLeaks]:
    """Return the results of some tasks.

    Raises:
        FileNotFoundError: a task has none.
        ValueError: a file is broken.
    """
    return [_read(folder / f"{task}.json", task) for task in tasks]


def _read(path: Path, task: str) -> TaskLeaks:
    again = f"Run `dvc repro leaks@{task}`."
    try:
        found = TaskLeaks.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {path}. {again}") from None
    except ValidationError as error:
        raise ValueError(f"{path} is broken: {error.errors()[0]['msg']}. {again}") from None
    if found.task != task:
        raise ValueError(f"{path} is of task {found.task!r}. {again}")
    return found


def clips_to_exclude(results: Sequence[TaskLeaks], policy: str) -> list[str]:
    """Return the clips to leave out: every one that was found, or none if `policy` is report.

    Raises:
        RuntimeError: `policy` is refuse, and there are some.
    """
    clips = sorted({leak.clip_id for found in results for leak in found.leaks})
    if policy == "refuse" and clips:
        raise RuntimeError(_refusal(results, len(clips)))
    return clips if policy == "exclude" else []


def _refusal(results: Sequence[TaskLeaks], total: int) -> str:
    lines = [
        f"  {found.task}: {len(found.leaks)}, for example "
        + ", ".join(f"{x.clip_id} ({x.split}/{x.file})" for x in found.leaks[:SHOWN])
        for found in results
        if found.leaks
    ]
    return "\n".join(
        [
            f"{total} clips of the pre-training data are in test splits (leaks.policy = refuse):",
            *lines,
            "All are in reports/leaks. Set leaks.policy to exclude, which pre-trains without them, "
            "take them out of the source, or take the task out of hear.tasks.",
        ]
    )


def mark(ledger: pd.DataFrame, clips: Collection[str]) -> pd.DataFrame:
    """Return the ledger of a run that left out these clips: they are not obtained, but leaks."""
    left_out = ledger["clip_id"].isin(set(clips)) & (ledger["status"] == "ok")
    marked = ledger.copy()
    values = [STATUS, STAGE, "it is in the test split of a task"]
    marked.loc[left_out, ["status", "stage", "reason"]] = values
    return marked
