"""Score files: what the report reads of them, and how their numbers are named and compared.

A score file is `reports/scores/<model>/<task>.json`, model one of `hear.models`:

    {"task", "model", "metric", "score", "std" (null unless k-fold), "grid", "grid_points", ...}
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.hear.params import Model
from pipeline.hear.score.params import ScoreParams

MODEL_NAMES: dict[Model, str] = {
    "pretrained": "the pre-trained encoder",
    "random": "the random encoder",
    "mel": "mel statistics",
    "crepe": "CREPE",
    "wav2vec2": "wav2vec 2.0",
    "module": "the HEAR module",
}
HEAR_PROTOCOL = ("default", 8)  # grid, grid_points
METRICS = {  # heareval's name: (kind of task, name to read)
    "top1_acc": ("scene, multiclass", "top-1 accuracy"),
    "pitch_acc": ("scene, multiclass", "pitch accuracy"),
    "chroma_acc": ("scene, multiclass", "chroma accuracy"),
    "mAP": ("scene, multilabel", "mAP"),
    "d_prime": ("scene, multilabel", "d prime"),
    "aucroc": ("scene, multilabel", "ROC AUC"),
    "event_onset_200ms_fms": ("timestamp", "onset F1, 200 ms"),
    "event_onset_50ms_fms": ("timestamp", "onset F1, 50 ms"),
    "event_onset_offset_50ms_20perc_fms": ("timestamp", "onset and offset F1, 50 ms"),
    "segment_1s_er": ("timestamp", "error rate, 1 s (lower is better)"),
}
NOT_AVERAGED = {"segment_1s_er": "is an error rate", "d_prime": "has no upper limit of 1"}


class Score(BaseModel):
    """What the report needs of a score file."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    task: str
    model: Model
    metric: str
    score: float | None  # None: evaluated, without a result
    std: float | None  # over the folds
    metrics: dict[str, float | None] = {}  # all of the task
    notes: dict[str, str] = {}  # why a number is None, by its dotted name
    seeds: int = 1  # of the scoring, whose mean `score` is
    seeds_std: float | None = None  # over them

    grid: str
    grid_points: int

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds if there are several, else over the folds."""
        return self.seeds_std if self.seeds > 1 else self.std


def read_score(path: Path, task: str, model: Model, protocol: ScoreParams) -> Score | None:
    """Return a score file's content, or None if there is no file.

    Raises:
        ValueError: it is not a score file, one of another task, model or protocol, or the score
            is one that its metric cannot have.
    """
    remedy = "Delete the file and run `dvc repro`."
    if not path.exists():
        return None
    try:
        score = Score.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise ValueError(f"{path} is not a score file: {where}: {first['msg']}. {remedy}") from None
    if (score.task, score.model) != (task, model):
        raise ValueError(f"{path} holds the score of {score.task} ({score.model}). {remedy}")
    if (score.grid, score.grid_points) != (protocol.grid, protocol.grid_points):
        raise ValueError(
            f"{path} was scored with grid {score.grid}, {score.grid_points} points, expected "
            f"score.grid = {protocol.grid}, score.grid_points = {protocol.grid_points}. {remedy}"
        )
    bounded = score.metric in METRICS and score.metric not in NOT_AVERAGED
    if bounded and score.score is not None and not 0 <= score.score <= 1:
        raise ValueError(
            f"{path}: {score.metric} = {score.score}, which must be from 0 to 1. {remedy}"
        )
    return score


def value_of(score: Score | None) -> float | None:
    """Return the score as a number, None if there is none."""
    return None if score is None else score.score


def why_none(score: Score | None) -> str:
    """Return why a scored task has no number, as ": reason"; "" if it was not scored."""
    return "" if score is None or "score" not in score.notes else f": {score.notes['score']}"


def percent_over(value: float | None, baseline: float | None) -> float | None:
    """Return how much `value` exceeds `baseline`, in percent of it; None where that is undefined.

    >>> percent_over(0.6, 0.5)
    20.0
    """
    if value is None or not baseline:
        return None
    return round(100 * (value - baseline) / baseline, 6)
