"""Sections of params.yaml that define the method: encoder, views, projector, loss, optimization."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.params import Section, check, load_value

AUDIONTT_STRIDE = 4  # mel bins, and frames, per output position

Beta = Annotated[float, Field(ge=0, lt=1)]


class LarsParams(Section):
    """Layer-wise adaptive rate scaling; one-dimensional parameters have a rate of their own."""

    name: Literal["lars"]
    lr: PositiveFloat  # of weights, at batch size 128
    lr_biases: PositiveFloat  # of biases and batch norm, at batch size 128
    weight_decay: NonNegativeFloat
    momentum: Beta
    trust_coefficient: PositiveFloat


class AdamWParams(Section):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    lr: PositiveFloat  # at batch size 128
    weight_decay: NonNegativeFloat
    beta1: Beta
    beta2: Beta


OptimizerParams = Annotated[LarsParams | AdamWParams, Field(discriminator="name")]


class AudioNTTParams(Section):
    """Section `encoders.audiontt`."""

    channels: PositiveInt
    hidden_dim: PositiveInt
    embed_dim: PositiveInt
    dropout: float = Field(ge=0, lt=1)
    optimizer: OptimizerParams

    def check_input(self, n_mels: int, crop_frames: int) -> None:
        """Raise a ValueError if the encoder cannot take inputs of this size."""
        if n_mels % AUDIONTT_STRIDE or crop_frames < AUDIONTT_STRIDE:
            raise ValueError(
                f"AudioNTT needs logmel.n_mels divisible by {AUDIONTT_STRIDE} and at least "
                f"{AUDIONTT_STRIDE} pretrain.crop_frames, got {n_mels} and {crop_frames}."
            )
        local_dim = self.channels * (n_mels // AUDIONTT_STRIDE)
        if self.embed_dim <= local_dim:
            raise ValueError(
                f"encoders.audiontt.embed_dim must exceed the {local_dim} local features that it "
                f"includes (channels = {self.channels}, n_mels = {n_mels}), got {self.embed_dim}."
            )


class ViTParams(Section):
    """Sections `encoders.vitc` and `encoders.vit`."""

    size: Literal["base", "small", "tiny"]
    patch_mels: PositiveInt  # mel bins
    patch_frames: PositiveInt  # frames
    position: Literal["sincos", "learned"]
    pool: Literal["cls", "mean"]
    optimizer: OptimizerParams

    @model_validator(mode="after")
    def _known_patch(self) -> "ViTParams":
        patches = {(16, 16), (16, 8), (8, 8), (64, 2)}
        if (self.patch_mels, self.patch_frames) not in patches:
            raise ValueError(
                f"patch_mels x patch_frames must be one of 16x16, 16x8, 8x8, 64x2, "
                f"got {self.patch_mels}x{self.patch_frames}."
            )
        return self

    def check_input(self, n_mels: int, crop_frames: int) -> None:
        """Raise a ValueError if the patches do not tile inputs of this size."""
        if n_mels % self.patch_mels or crop_frames % self.patch_frames:
            raise ValueError(
                f"Patches of {self.patch_mels} mel bins x {self.patch_frames} frames do not tile "
                f"an input of logmel.n_mels = {n_mels} x pretrain.crop_frames = {crop_frames}."
            )


EncoderParams = AudioNTTParams | ViTParams
ENCODERS: dict[str, type[AudioNTTParams] | type[ViTParams]] = {
    "audiontt": AudioNTTParams,
    "vitc": ViTParams,
    "vit": ViTParams,
}


class AugmentParams(Section):
    """Section `augment`."""

    mixup: bool
    mixup_alpha: float = Field(ge=0, lt=1)
    mixup_bank: PositiveInt  # crops
    rrc: bool
    rrc_canvas_mels: float = Field(ge=1)
    rrc_canvas_frames: float = Field(ge=1)
    rrc_scale_min: PositiveFloat
    rrc_scale_max: PositiveFloat
    rlf: bool
    rlf_gain: NonNegativeFloat  # standard deviations

    @model_validator(mode="after")
    def _ordered(self) -> "AugmentParams":
        if self.rrc_scale_min > self.rrc_scale_max:
            raise ValueError(
                f"rrc_scale_min = {self.rrc_scale_min} must not exceed "
                f"rrc_scale_max = {self.rrc_scale_max}."
            )
        return self


class ProjectorParams(Section):
    """Section `projector`."""

    hidden_layers: NonNegativeInt
    hidden_dim: PositiveInt
    out_dim: int = Field(ge=2)


class LossParams(Section):
    """Section `loss`."""

    alpha: NonNegativeFloat
    lambda_: NonNegativeFloat = Field(alias="lambda")


class PretrainParams(Section):
    """Section `pretrain`."""

    seed: NonNegativeInt
    epochs: PositiveInt
    batch_size: int = Field(ge=2)  # clips
    crop_frames: PositiveInt  # frames
    schedule: Literal["cosine", "constant"]
    warmup_epochs: NonNegativeFloat
    cosine_horizon: PositiveFloat  # times the run
    log_every: PositiveInt  # steps


def check_encoder(name: Any) -> type[AudioNTTParams] | type[ViTParams]:
    """Return the class of an encoder's section.

    Raises:
        ValueError: there is no such encoder.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder = {name!r}: must be one of {', '.join(sorted(ENCODERS))}.")
    return ENCODERS[name]


def parse_encoder(name: str, values: dict[str, Any]) -> EncoderParams:
    """Return an encoder's settings from plain values, as a checkpoint stores them."""
    return check(values, check_encoder(name), prefix=f"encoders.{name}")


def load_encoder() -> tuple[str, EncoderParams]:
    """Return the chosen encoder's name and settings from params.yaml."""
    name = load_value("encoder")
    check_encoder(name)
    return name, parse_encoder(name, load_value(f"encoders.{name}"))
