"""The model to pre-train: encoder, projector and, for some objectives, predictor."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.encoders.build import Encoder, build_encoder
from pipeline.encoders.params import EncoderParams
from pipeline.pretrain.params import AugmentParams, LossParams, PretrainParams, ProjectorParams
from pipeline.pretrain.projector import build_projector
from pipeline.pretrain.seeds import Stream, derive_seed


@dataclass(frozen=True)
class Settings:
    """Every section of params.yaml that pre-training reads."""

    encoder_name: str
    encoder: EncoderParams
    augment: AugmentParams
    projector: ProjectorParams
    loss: LossParams
    pretrain: PretrainParams


class BarlowTwins(nn.Module):
    """Encoder and projector, applied to each view by itself, so that batch norm sees one view.

    The predictor maps the embedding of one view to that of the other.
    """

    def __init__(
        self, encoder: Encoder, projector: nn.Sequential, predictor: nn.Sequential | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor

    def forward(
        self,
        view_1: Float[Tensor, "B F T"],
        view_2: Float[Tensor, "B F T"],
        visible: Int[Tensor, "B K"] | None = None,
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Return the embeddings z of both views; `visible` holds the patches to see of view 1."""
        masked = () if visible is None else (visible,)
        y_1, y_2 = self.encoder(view_1[:, None], *masked), self.encoder(view_2[:, None])
        return self.projector(y_1), self.projector(y_2)


def build_model(settings: Settings, n_mels: int) -> BarlowTwins:
    """Return the model at its initialisation, which `pretrain.seed` determines."""
    p = settings.pretrain
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(p.seed, Stream.WEIGHTS))
        encoder = build_encoder(settings.encoder_name, settings.encoder, n_mels, p.crop_frames)
        projector = build_projector(settings.projector, encoder.embed_dim)
        if not settings.loss.predictor:
            return BarlowTwins(encoder, projector)
        dim = settings.projector.out_dim
        one_layer = ProjectorParams(hidden_layers=1, hidden_dim=dim, out_dim=dim)
        return BarlowTwins(encoder, projector, build_projector(one_layer, dim))
