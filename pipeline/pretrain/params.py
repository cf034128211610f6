"""Sections `augment`, `projector`, `loss` and `pretrain` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.params import Section
from pipeline.encoders.params import Dimension, Share

Scale = Annotated[float, Field(gt=0, le=100)]
Range = Annotated[list[Scale], Field(min_length=2, max_length=2)]  # from, to


class AugmentParams(Section):
    """Section `augment`."""

    pre_post_norm: bool
    mixup: bool
    mixup_alpha: Share
    mixup_background: Literal["bank", "batch"]
    mixup_bank: int = Field(ge=1, le=2**20)  # crops
    noise: Literal["none", "additive", "reference"]
    noise_max: float = Field(ge=0, le=1)  # standard deviation
    rrc: bool
    rrc_canvas_mels: float = Field(ge=1, le=100)
    rrc_canvas_frames: float = Field(ge=1, le=100)
    rrc_mel_scale: Range  # times the number of mel bins
    rrc_frame_scale: Range  # times the number of frames
    rlf: bool
    rlf_gain: float = Field(ge=0, le=1000)  # standard deviations

    @field_validator("rrc_mel_scale", "rrc_frame_scale")
    @classmethod
    def _ordered(cls, scale: list[float]) -> list[float]:
        low, high = scale
        if low > high:
            raise ValueError(f"the range must not go down, got {low} to {high}.")
        return scale


class ProjectorParams(Section):
    """Section `projector`."""

    hidden_layers: int = Field(ge=0, le=100)
    hidden_dim: Dimension
    out_dim: int = Field(ge=2, le=2**17)


class LossParams(Section):
    """Section `loss`."""

    objective: Literal["barlow_twins", "byol"]
    alpha: float = Field(ge=0, le=1e6)
    lambda_: float = Field(alias="lambda", ge=0, le=1e6)
    hsic: bool
    target: Literal["shared", "stop_gradient", "ema"]
    predictor: bool
    ema_decay: float = Field(ge=0, le=1)  # per step

    @model_validator(mode="after")
    def _with_a_target_network(self) -> "LossParams":
        if self.objective == "byol" and not (self.target == "ema" and self.predictor):
            raise ValueError(
                f"objective = byol needs target = ema and predictor = true, got target = "
                f"{self.target} and predictor = {str(self.predictor).lower()}: without them all "
                "embeddings become the same."
            )
        return self


class PretrainParams(Section):
    """Section `pretrain`."""

    seed: int = Field(ge=0, lt=2**63)
    epochs: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(ge=2, le=2**20)  # crops
    crops_per_clip: int = Field(ge=1, le=2**20)
    crop_frames: int = Field(ge=1, le=1_000_000)  # frames
    schedule: Literal["cosine", "constant"]
    warmup_epochs: float = Field(ge=0, le=1_000_000)
    cosine_horizon: float = Field(gt=0, le=1000)  # times the run
    log_every: int = Field(ge=1, le=1_000_000)  # steps
    rank_clips: int = Field(ge=0, le=2**17)  # 0: never, else 2 or more
    snapshot_epochs: int = Field(ge=0, le=1_000_000)  # 0: never
    random_calibration_clips: int = Field(ge=0, le=2**17)  # 0: none

    @field_validator("rank_clips")
    @classmethod
    def _several_or_none(cls, clips: int) -> int:
        if clips == 1:
            raise ValueError("one clip has no rank. Set it to 0 to measure none, or to 2 or more.")
        return clips

    @model_validator(mode="after")
    def _whole_clips(self) -> "PretrainParams":
        if self.batch_size % self.crops_per_clip:
            raise ValueError(
                f"batch_size = {self.batch_size} must be divisible by "
                f"crops_per_clip = {self.crops_per_clip}."
            )
        return self
