"""Sections of params.yaml that define the method: encoder, views, projector, loss, optimization."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.params import Section

AUDIONTT_STRIDE = 4  # mel bins, and frames, per output position

# Upper bounds are far above all that makes sense: they catch slips before they cost memory or time.
Dimension = Annotated[int, Field(ge=1, le=2**17)]  # R's largest: 16384
Rate = Annotated[float, Field(gt=0, le=1000)]
Decay = Annotated[float, Field(ge=0, le=1000)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class LarsParams(Section):
    """Layer-wise adaptive rate scaling; one-dimensional parameters have a rate of their own."""

    name: Literal["lars"]
    lr: Rate  # of weights, at batch size 128
    lr_biases: Rate  # of biases and batch norm, at batch size 128
    weight_decay: Decay
    momentum: Beta
    trust_coefficient: Rate


class AdamWParams(Section):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    lr: Rate  # at batch size 128
    weight_decay: Decay
    beta1: Beta
    beta2: Beta


OptimizerParams = Annotated[LarsParams | AdamWParams, Field(discriminator="name")]


class AudioNTTParams(Section):
    """Section `encoders.audiontt`."""

    channels: int = Field(ge=1, le=2**13)
    hidden_dim: Dimension
    embed_dim: Dimension
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
    patch_mels: int = Field(ge=1)  # mel bins
    patch_frames: int = Field(ge=1)  # frames
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
    mixup_bank: int = Field(ge=1, le=2**20)  # crops
    rrc: bool
    rrc_canvas_mels: float = Field(ge=1, le=100)
    rrc_canvas_frames: float = Field(ge=1, le=100)
    rrc_scale_min: float = Field(gt=0, le=100)
    rrc_scale_max: float = Field(gt=0, le=100)
    rlf: bool
    rlf_gain: float = Field(ge=0, le=1000)  # standard deviations

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

    hidden_layers: int = Field(ge=0, le=100)
    hidden_dim: Dimension
    out_dim: int = Field(ge=2, le=2**17)


class LossParams(Section):
    """Section `loss`."""

    alpha: float = Field(ge=0, le=1e6)
    lambda_: float = Field(alias="lambda", ge=0, le=1e6)


class PretrainParams(Section):
    """Section `pretrain`."""

    seed: int = Field(ge=0, lt=2**63)
    epochs: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(ge=2, le=2**20)  # clips
    crop_frames: int = Field(ge=1, le=1_000_000)  # frames
    schedule: Literal["cosine", "constant"]
    warmup_epochs: float = Field(ge=0, le=1_000_000)
    cosine_horizon: float = Field(gt=0, le=1000)  # times the run
    log_every: int = Field(ge=1, le=1_000_000)  # steps


def check_encoder(name: Any) -> type[AudioNTTParams] | type[ViTParams]:
    """Return the class of an encoder's section.

    Raises:
        ValueError: there is no such encoder.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder = {name!r}: must be one of {', '.join(sorted(ENCODERS))}.")
    return ENCODERS[name]
