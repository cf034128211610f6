"""Sections `sources`, `download` and `resample` of params.yaml."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.core.params import LocalPath, Section, classes
from pipeline.core.repository import locate

# A path; "" would be the repository itself.
Place = Annotated[str, Field(min_length=1), AfterValidator(locate)]


def _only(known: str, template: str) -> str:
    for found in re.findall(r"\{\w*\}", template):
        if found != known:
            raise ValueError(
                f"{template!r}: unknown placeholder {found}; only {known} is supported. Correct it."
            )
    return template


def _for_every_recording(url: str) -> str:
    if "{recording_id}" not in url:
        raise ValueError(
            f"{url!r} must contain {{recording_id}}, the placeholder for the id of a recording."
        )
    return _only("{recording_id}", url)


def _for_a_subset(lists: str) -> str:
    return _only("{subset}", lists)


RecordingUrl = Annotated[LocalPath, AfterValidator(_for_every_recording)]


class SegmentListParams(Section):
    """Sections `sources.sample` and `sources.url`: recordings, and the segments wanted of them."""

    segments: Place  # AudioSet-format CSV
    url: RecordingUrl  # path or URL of a recording; {recording_id} is its id
    clips: LocalPath  # list of the ids to take, "" for all; as in each of the sections below


class AudioSetParams(Section):
    """Section `sources.audioset`: Google's lists, and the site that has their recordings."""

    subsets: list[Literal["unbalanced_train", "balanced_train", "eval"]] = Field(min_length=1)
    lists: Annotated[Place, AfterValidator(_for_a_subset)]  # or address, of a {subset}'s list
    labels: Place  # or address, of class_labels_indices.csv
    url: RecordingUrl  # path or address of a recording; {recording_id} is its id
    clips: LocalPath

    @model_validator(mode="after")
    def _for_every_one(self) -> "AudioSetParams":
        if len(set(self.subsets)) != len(self.subsets):
            raise ValueError(f"subsets = {self.subsets} must name each subset once.")
        if len(self.subsets) > 1 and "{subset}" not in self.lists:
            raise ValueError(f"lists = {self.lists!r} must contain {{subset}}, of which there are "
                             f"{len(self.subsets)}.")  # fmt: skip
        return self


class FolderParams(Section):
    """Section `sources.folder`: a tree of audio files."""

    path: Place  # file or folder
    max_clip_s: float = Field(ge=0, le=100_000)  # longer recordings are cut; 0: none is
    clips: LocalPath

    @field_validator("max_clip_s")
    @classmethod
    def _audible(cls, max_clip_s: float) -> float:
        if 0 < max_clip_s < 1:
            raise ValueError(f"{max_clip_s} s must be 0 (no cuts), or 1 s or more.")
        return max_clip_s


class Fsd50kParams(Section):
    """Section `sources.fsd50k`: FSD50K as published."""

    path: Place  # folder with FSD50K.dev_audio and FSD50K.ground_truth
    splits: list[Literal["train", "val"]] = Field(min_length=1)  # of the development set
    clips: LocalPath


class TarParams(Section):
    """Section `sources.tar`: WebDataset tars."""

    path: Place  # file or folder
    label_key: str  # in the JSON member of a sample
    id_key: str  # likewise, of the id; "": the name of the member
    segments: list[Place]  # AudioSet-format CSVs of what it should hold, or their addresses
    clips: LocalPath


class ParquetParams(Section):
    """Section `sources.parquet`: AudioSet's mirrors on the Hugging Face Hub."""

    path: Place  # file or folder
    label_column: str  # "": none
    segments: list[Place]
    clips: LocalPath


class Hdf5Params(Section):
    """Section `sources.hdf5`: AudioSet packed for PANNs or PaSST."""

    path: Place  # file or folder
    segments: list[Place]
    sample_rate: int = Field(ge=0, le=10_000_000)  # Hz, of waveforms whose file does not say it
    classes: LocalPath  # CSV of AudioSet's ids by class number, "": none
    clips: LocalPath


class Sources(Section):
    """Section `sources`."""

    sample: SegmentListParams
    url: SegmentListParams
    audioset: AudioSetParams
    folder: FolderParams
    fsd50k: Fsd50kParams
    tar: TarParams
    parquet: ParquetParams
    hdf5: Hdf5Params


SOURCES: dict[str, type[Section]] = classes(Sources)
FETCHED = (SegmentListParams, AudioSetParams)  # whose recordings are fetched one by one


class DownloadParams(Section):
    """Section `download`."""

    max_failed: float = Field(ge=0, le=1)  # share of segments that may be unavailable
    publish_partial: bool  # publish what is there although clips were not tried yet
    max_clip_mb: float = Field(gt=0, le=1_000_000)  # of a clip in a container
    # rows of the segment list per tar shard, here and downstream
    clips_per_shard: int = Field(ge=1, le=10_000_000)


class ResampleParams(Section):
    """Section `resample`."""

    max_failed: float = Field(ge=0, le=1)  # share of clips that may be unusable
    min_duration_s: float = Field(gt=0, le=3600)  # shorter clips are skipped
    silence_db: float = Field(
        ge=-1000, le=0
    )  # peak level, dB of full scale, under which a clip is silent; -1000: none is
    max_clipped: float = Field(ge=0, le=1)  # share of samples at full scale; 1: no limit
