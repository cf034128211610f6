"""Sections `hear` and `probe` of params.yaml."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.core.params import Section, check, classes
from pipeline.core.repository import locate
from pipeline.core.stage import Stage

TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")  # a single word for DVC and shells
Model = Literal["pretrained", "random", "mel", "crepe", "wav2vec2", "module"]
TRAINED: tuple[Model, ...] = ("pretrained", "random")  # by the stage pretrain
BASELINES: tuple[Model, ...] = ("mel", "crepe", "wav2vec2", "module")  # by the stage baselines


def _distinct(values: list[Any]) -> list[Any]:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} appears more than once. Remove the repetition.")
    return values


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _task_name(name: str) -> str:
    if not TASK_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} must be the name of a folder, such as esc50-v2.0.0-full: letters, digits "
            "and _ . + -, starting with a letter, digit or _. Correct it, or rename the folder."
        )
    return name


TaskName = Annotated[str, AfterValidator(_task_name)]  # a folder in the HEAR format
Tasks = Annotated[list[TaskName], AfterValidator(_distinct)]
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000)]
Windows = Annotated[
    list[Milliseconds],
    BeforeValidator(_as_list),
    Field(min_length=1, max_length=16),
    AfterValidator(_distinct),
]


class ExtractionParams(Section):
    """How an encoder embeds audio; part of section `hear`."""

    mode: Literal["ours", "reference"]  # reference: the authors' wrapper
    normalization: Literal["dataset", "task", "reference"]  # source of the statistics
    window_ms: Windows  # of a timestamp embedding; several are concatenated
    hop_ms: Milliseconds  # between timestamps
    edges: Literal["context", "cut"]  # of a window: from the STFT of the clip, or from its own
    layers: Literal["last", "concat", "mean"]  # which layers, and how they are combined
    mel_mean: bool  # whether the mean of the log-mel over time is appended

    @model_validator(mode="after")
    def _reference_fixes_other_settings(self) -> "ExtractionParams":
        if self.mode == "ours":
            return self
        fixed = {"normalization": "reference", "edges": "cut", "layers": "last", "mel_mean": False}
        wrong = {key: value for key, value in fixed.items() if getattr(self, key) != value}
        if wrong or len(self.window_ms) > 1:
            settings = "".join(f" -S hear.{key}={value}" for key, value in wrong.items())
            settings += " -S hear.window_ms=950.0" if len(self.window_ms) > 1 else ""
            raise ValueError(
                "mode = 'reference' reproduces the authors' wrapper, which fixes other settings: "
                f"add{settings.replace('False', 'false')}."
            )
        return self


def read_extraction(stage: Stage) -> ExtractionParams:
    """Read what embeddings depend on: not all of `hear`, whose list of tasks may grow.

    Raises:
        ValueError: a value is missing or out of range.
    """
    values = {
        "mode": stage.value("hear.mode"),
        "normalization": stage.value("hear.normalization"),
        "window_ms": stage.value("hear.window_ms"),
        "hop_ms": stage.value("hear.hop_ms"),
        "edges": stage.value("hear.edges"),
        "layers": stage.value("hear.layers"),
        "mel_mean": stage.value("hear.mel_mean"),
    }
    return check(values, ExtractionParams, prefix="hear")


class CrepeParams(Section):
    """Section `hear.crepe`."""

    size: Literal["full", "tiny"]
    scene_hop_ms: Milliseconds  # between the frames that a scene embedding averages


class Wav2Vec2Params(Section):
    """Section `hear.wav2vec2`."""

    bundle: str = Field(pattern=r"^(WAV2VEC2|HUBERT)_[A-Z0-9_]+$")  # in torchaudio.pipelines
    weights: str  # path of the bundle's weights


class ModuleParams(Section):
    """Section `hear.module`: any installed module with the HEAR API."""

    import_: str = Field(alias="import", pattern=r"^([A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?$")
    weights: str  # path passed to its load_model; "": none


class BaselineParams(Section):
    """Which models are compared, and the baselines' settings; part of section `hear`."""

    models: Annotated[list[Model], AfterValidator(_distinct)] = Field(min_length=1)
    crepe: CrepeParams
    wav2vec2: Wav2Vec2Params
    module: ModuleParams


class TaskFolderParams(Section):
    """Section `hear.sources.sample` or `.folder`: tasks on this disk."""

    path: Annotated[str, Field(min_length=1), AfterValidator(locate)]  # of their parent folder


class ZenodoParams(Section):
    """Section `hear.sources.zenodo`: task archives in a Zenodo record."""

    record: int = Field(ge=1)
    listing: str = Field(pattern=r"^https?://")  # address; {record} is replaced by the record
    archive: str = Field(pattern=r"\{task\}")  # name of a task's archive in the record


class HearSources(Section):
    """Section `hear.sources`."""

    sample: TaskFolderParams
    folder: TaskFolderParams
    zenodo: ZenodoParams


TASK_SOURCES: dict[str, type[Section]] = classes(HearSources)


class HearParams(ExtractionParams, BaselineParams):
    """Section `hear`."""

    source: Literal["sample", "folder", "zenodo"]  # one of `sources`
    sources: HearSources
    max_file_mb: float = Field(gt=0, le=1_000_000)  # of a file of a task
    tasks: Tasks = Field(min_length=1)

    @model_validator(mode="after")
    def _encoder_settings_have_an_encoder(self) -> "HearParams":
        """Refuse settings that apply to none of the models."""
        if set(self.models) & set(TRAINED):
            return self
        neutral = {"mode": "ours", "normalization": "dataset", "layers": "last"}
        for key, value in {**neutral, "mel_mean": False}.items():
            if (setting := getattr(self, key)) != value:
                raise ValueError(
                    f"{key} = {setting!r} applies only to the encoders, but models has neither "
                    f"pretrained nor random ({', '.join(self.models)}). Add one of them, or set "
                    f"{key} back to {value!r}."
                )
        return self

    @property
    def folder(self) -> Path | None:
        """Parent folder of the tasks; None if they are downloaded."""
        chosen: TaskFolderParams | ZenodoParams = getattr(self.sources, self.source)
        return Path(chosen.path) if isinstance(chosen, TaskFolderParams) else None


def check_layers(layers: str, encoder: str) -> None:
    """Raise a ValueError if the encoder's layers cannot be combined in this way."""
    if layers == "mean" and encoder == "audiontt":
        raise ValueError(
            "hear.layers = 'mean' needs layers of one size, which audiontt does not have (vitc and "
            "vit do). Set hear.layers to last or concat."
        )


def _auto_is_none(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value != "auto"):
        raise ValueError(f"{value!r} must be auto or a list, such as [esc50-v2.0.0-full].")
    return None if value == "auto" else value


class ProbeParams(Section):
    """Section `probe`: quick scores of the encoder snapshots of pre-training."""

    # scene tasks among hear.tasks; empty: no probe; None: auto, as the stage `validate` chooses
    tasks: Annotated[Tasks | None, BeforeValidator(_auto_is_none)]
    neighbors: int = Field(ge=1, le=100_000)  # of the kNN classifier
    inverse_l2: float = Field(gt=0, le=1e6)  # of the logistic regression; scikit-learn's C
