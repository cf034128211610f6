"""Sections `encoders.<name>` of params.yaml: each encoder with its optimizer."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.core.params import Section

AUDIONTT_STRIDE = 4  # mel bins, and frames, per output position
MIN_RANDOM_MASK = 0.05  # smallest ratio that the schedule `random` draws, besides 0
# Upper bounds are far above any sensible value: they catch slips before these cost memory or time.
Dimension = Annotated[int, Field(ge=1, le=2**17)]  # the report's largest: 16384
Rate = Annotated[float, Field(gt=0, le=1000)]
Decay = Annotated[float, Field(ge=0, le=1000)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerParams(Section):
    """Section `encoders.<name>.optimizer`; each optimizer uses the keys that concern it."""

    name: Literal["lars", "adamw", "adam", "sgd"]
    lr: Rate  # at batch size 128
    lr_biases: Rate  # of biases and norms, at batch size 128 (lars)
    weight_decay: Decay  # of matrices; decoupled in adamw, else added to the gradient
    momentum: Beta  # lars, sgd
    trust_coefficient: Rate  # lars
    beta1: Beta  # adamw, adam
    beta2: Beta


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
    mask_ratio: Share  # of view 1's patches, hidden from the encoder
    mask_schedule: Literal["fixed", "random", "sine"]
    mask_warmup: Share  # of the epochs, at the start, without masks (sine)
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

    @model_validator(mode="after")
    def _mask_has_a_range(self) -> "ViTParams":
        if self.mask_schedule == "random" and 0 < self.mask_ratio < MIN_RANDOM_MASK:
            raise ValueError(
                f"mask_schedule random draws from {MIN_RANDOM_MASK} up to mask_ratio, "
                f"which must be 0 or at least that, got {self.mask_ratio}."
            )
        return self

    def check_input(self, n_mels: int, crop_frames: int) -> None:
        """Raise a ValueError if the patches do not tile this input, or all would be masked."""
        if n_mels % self.patch_mels or crop_frames % self.patch_frames:
            raise ValueError(
                f"Patches of {self.patch_mels} mel bins x {self.patch_frames} frames do not tile "
                f"an input of logmel.n_mels = {n_mels} x pretrain.crop_frames = {crop_frames}."
            )
        patches = (n_mels // self.patch_mels) * (crop_frames // self.patch_frames)
        if visible_patches(patches, self.mask_ratio) < 1:
            raise ValueError(
                f"mask_ratio = {self.mask_ratio} leaves none of the {patches} patches. Lower it."
            )


def visible_patches(patches: int, mask_ratio: float) -> int:
    """Return how many patches a mask leaves: int(patches (1 - mask_ratio)), as the authors' code.

    The paper rounds instead, which differs for 48 patches at 0.05, 0.15 and 0.3.
    """
    return int(patches * (1 - mask_ratio) + 1e-9)  # 10 * (1 - 0.9) is a little less than 1


EncoderParams = AudioNTTParams | ViTParams


class Encoders(Section):
    """Section `encoders`."""

    audiontt: AudioNTTParams
    vitc: ViTParams
    vit: ViTParams


ENCODERS: dict[str, Any] = {name: field.annotation for name, field in Encoders.model_fields.items()}


def check_encoder(name: Any) -> type[AudioNTTParams] | type[ViTParams]:
    """Return the class of an encoder's section.

    Raises:
        ValueError: there is no such encoder.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder = {name!r}: must be one of {', '.join(sorted(ENCODERS))}.")
    return ENCODERS[name]
