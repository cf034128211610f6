"""HEAR tasks on disk: metadata, vocabulary and labels, all checked before any work starts.

One folder per task, as hear-preprocess writes it and hear-eval-kit reads it:

    task_metadata.json    kind of task, names of its splits, metrics (the first one counts)
    labelvocabulary.csv   header idx,label; idx from 0 without gaps
    <split>.json          scene: {file: [label, ...]}; event: {file: [{"label", "start", "end"}]}
                          with times in ms
    <rate>/<split>/<file> mono audio, one folder per sample rate
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)

METADATA = "task_metadata.json"
VOCABULARY = "labelvocabulary.csv"
TRAIN_VALID_TEST = ["train", "valid", "test"]
MISSPELT = 0.85  # similarity (difflib) from which a name counts as a misspelt field
MIN_FOLDS = 3  # one for testing, one for validation, the rest for training
SCENE_METRICS = ("top1_acc", "pitch_acc", "chroma_acc", "mAP", "d_prime", "aucroc")
EVENT_METRICS = (
    "event_onset_200ms_fms",
    "event_onset_50ms_fms",
    "event_onset_offset_50ms_20perc_fms",
    "segment_1s_er",
)
STRICT = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


def _plain(name: str) -> str:
    if not name.strip(".") or set(name) & set("/\\"):
        raise ValueError(f"{name!r} must be the plain name of a file or folder.")
    return name


Name = Annotated[str, AfterValidator(_plain)]


class EvaluationParams(BaseModel):
    """Field `evaluation_params`: grids that replace those of hear-eval-kit."""

    model_config = STRICT

    event_postprocessing_grid: (
        dict[Literal["median_filter_ms", "min_duration"], list[int | float]] | None
    ) = None  # ms
    task_specific_param_grid: dict[str, list[Any]] = {}


class Metadata(BaseModel):
    """The fields of task_metadata.json that hear-eval-kit reads; others are ignored."""

    model_config = STRICT

    task_name: str = Field(min_length=1)
    embedding_type: Literal["scene", "event"]
    prediction_type: Literal["multiclass", "multilabel"]
    split_mode: Literal["trainvaltest", "new_split_kfold", "presplit_kfold"]
    splits: list[Name]
    sample_duration: PositiveFloat | None  # seconds
    evaluation: list[str] = Field(min_length=1)  # metrics
    evaluation_params: EvaluationParams = EvaluationParams()
    use_scoring_for_early_stopping: bool = True  # else the loss

    @model_validator(mode="before")
    @classmethod
    def _no_misspelt_field(cls, content: Any) -> Any:
        """Refuse misspelt fields: an optional one would otherwise be ignored silently."""
        for name in content if isinstance(content, dict) else ():
            nearest = get_close_matches(name, cls.model_fields, n=1, cutoff=MISSPELT)
            if nearest and name not in cls.model_fields:
                raise ValueError(f"unknown field {name!r}: did you mean {nearest[0]!r}?")
        return content

    @model_validator(mode="after")
    def _consistent(self) -> "Metadata":
        if self.embedding_type == "event" and self.prediction_type != "multilabel":
            raise ValueError(
                f"prediction_type = {self.prediction_type!r}: an event task must be 'multilabel'."
            )
        metrics = SCENE_METRICS if self.embedding_type == "scene" else EVENT_METRICS
        unknown = [name for name in self.evaluation if name not in metrics]
        if unknown:
            raise ValueError(
                f"evaluation = {unknown}: not a metric of {self.embedding_type} tasks, "
                f"which have {', '.join(metrics)}."
            )
        return self

    @model_validator(mode="after")
    def _splits_fit_mode(self) -> "Metadata":
        if self.split_mode == "trainvaltest":
            if self.splits != TRAIN_VALID_TEST:
                raise ValueError(f"splits = {self.splits}: must be {TRAIN_VALID_TEST}.")
        elif len(set(self.splits)) != len(self.splits) or len(self.splits) < MIN_FOLDS:
            raise ValueError(
                f"splits = {self.splits}: must be at least {MIN_FOLDS} different folds."
            )
        return self


class Event(BaseModel):
    """One sound event of a file."""

    model_config = STRICT

    label: str | int
    start: float = Field(ge=0)  # ms
    end: float  # ms

    @model_validator(mode="after")
    def _ordered(self) -> "Event":
        if self.end < self.start:
            raise ValueError(f"end = {self.end} ms is before start = {self.start} ms.")
        return self


Labels = list[str | int] | list[Event]  # of one file


METADATA_FILE = TypeAdapter(Metadata)
LABEL_FILES: dict[str, TypeAdapter] = {  # <split>.json by embedding_type
    "scene": TypeAdapter(dict[Name, list[str | int]], config=STRICT),
    "event": TypeAdapter(dict[Name, list[Event]], config=STRICT),
}


@dataclass(frozen=True)
class Task:
    """A task with checked metadata, vocabulary and labels; its audio is not checked."""

    folder: Path
    metadata: Metadata
    labels: Mapping[str, Mapping[str, Labels]]  # split -> file -> labels, files in stored order
    vocabulary: Sequence[str]  # labels by index

    @property
    def name(self) -> str:
        """Name of the folder, `<task>-<version>-<mode>`."""
        return self.folder.name

    def audio(self, sample_rate: int, split: str) -> Path:
        """Return the folder of one split's audio."""
        return self.folder / str(sample_rate) / split


def available_tasks(folder: Path) -> list[str]:
    """Return the names of all tasks in a folder; none if it does not exist."""
    return sorted(path.parent.name for path in folder.glob(f"*/{METADATA}"))


def find_task(folder: Path, name: str) -> Path:
    """Return the folder of a task.

    Raises:
        ValueError: it does not exist; the message lists those that do.
    """
    available = available_tasks(folder)
    if name not in available:
        known = ", ".join(available) or "none"
        raise ValueError(f"hear.tasks: {name!r} is not a task in {folder}; available: {known}.")
    return folder / name


def read_task(folder: Path) -> Task:
    """Read a task's metadata, vocabulary and labels.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a field is missing or invalid, the vocabulary has gaps, or a label is not in it.
    """
    metadata: Metadata = _read_json(METADATA_FILE, folder / METADATA)
    vocabulary = read_vocabulary(folder / VOCABULARY)
    label_file = LABEL_FILES[metadata.embedding_type]
    labels = {split: _read_json(label_file, folder / f"{split}.json") for split in metadata.splits}
    for split, files in labels.items():
        _check_labels(files, metadata, vocabulary, folder / f"{split}.json")
    return Task(folder, metadata, labels, vocabulary)


def _read_json(schema: TypeAdapter, path: Path) -> Any:
    """Return a validated JSON file, or raise one message about its first error."""
    content = require_file(path).read_bytes()
    try:
        value = schema.validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "[key]")
        where = f"{path}, field {field!r}" if field else str(path)
        if first["type"] == "value_error":
            raise ValueError(f"{where}: {first['ctx']['error']}") from None
        got = "" if first["type"] == "missing" else f", got {str(first['input'])[:80]!r}"
        raise ValueError(f"{where}: {first['msg']}{got}.") from None
    _refuse_repeated_keys(content, path)
    return value


def _refuse_repeated_keys(content: bytes, path: Path) -> None:
    """Refuse repeated keys, of which JSON readers silently take the last."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = Counter(key for key, _ in pairs)
        if len(keys) < len(pairs):
            raise ValueError(
                f"{path}: key {keys.most_common(1)[0][0]!r} appears more than once. Remove or "
                "rename one of them."
            )

    json.loads(content, object_pairs_hook=check)


def read_vocabulary(path: Path) -> list[str]:
    """Return the labels ordered by index.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a valid vocabulary.
    """
    with require_file(path).open(
        newline="", encoding="utf-8-sig"
    ) as file:  # spreadsheets add a BOM
        try:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is not a UTF-8 CSV file: {error}. Save it as one.") from None
    if header != ["idx", "label"]:
        raise ValueError(f"{path}: the header must be idx,label, got {','.join(header)[:80]!r}.")
    by_index = {row[0]: row[1] for row in rows if len(row) == 2 and row[1]}
    expected = [str(index) for index in range(len(rows))]
    if not rows or set(by_index) != set(expected):
        raise ValueError(
            f"{path}: idx must count from 0 without gaps, with one label each (in quotes if it has "
            f"a comma), got {[','.join(row) for row in rows[:20]]}."
        )
    labels = [by_index[index] for index in expected]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ValueError(f"{path}: label {repeated[0]!r} appears more than once.")
    return labels


def _check_labels(
    files: Mapping[str, Labels], metadata: Metadata, vocabulary: Sequence[str], path: Path
) -> None:
    if not files:
        raise ValueError(f"{path} lists no files.")
    known = set(vocabulary)
    for name, labels in files.items():
        texts = [str(x.label if isinstance(x, Event) else x) for x in labels]
        unknown = [text for text in texts if text not in known]
        if unknown:
            raise ValueError(
                f"{path}, file {name!r}: label {unknown[0]!r} is not in {VOCABULARY}, "
                f"which has {', '.join(vocabulary[:20])}."
            )
        if metadata.prediction_type == "multiclass" and len(texts) != 1:
            raise ValueError(
                f"{path}, file {name!r}: a multiclass task has one label per file, got {texts}."
            )


def require_file(path: Path) -> Path:
    """Return the path of a task's file.

    Raises:
        FileNotFoundError: it does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Restore it, or fetch the task again.")
    return path
