"""AudioNTT, the convolutional encoder of BYOL-A v2 (paper section 2.2; report section 3.2).

Two convolution blocks reduce frequency and time by 4; an MLP mixes the features of each remaining
frame; local features (convolutions) and global ones (MLP) are concatenated, then pooled over time
by maximum plus mean. 6,333,376 parameters at 64 mel bins and 3072 dimensions.
"""

from jaxtyping import Float
from torch import Tensor, cat, nn

from pipeline.encoders.params import AUDIONTT_STRIDE, AudioNTTParams


class AudioNTT(nn.Module):
    """Convolutional encoder for inputs of 4 or more frames."""

    segment_frames = None

    def __init__(self, params: AudioNTTParams, n_mels: int) -> None:
        super().__init__()
        local_dim = params.channels * (n_mels // AUDIONTT_STRIDE)
        self.embed_dim = params.embed_dim
        self.conv = nn.Sequential(
            _block(1, params.channels), _block(params.channels, params.channels)
        )
        self.mlp = nn.Sequential(
            nn.Linear(local_dim, params.hidden_dim),
            nn.ReLU(),
            nn.Dropout(params.dropout),
            nn.Linear(params.hidden_dim, params.embed_dim - local_dim),
            nn.ReLU(),
        )

    def forward(self, x: Float[Tensor, "B 1 F T"]) -> Float[Tensor, "B D"]:
        """Return one representation for the whole input."""
        return self.encode(self.conv(x))

    def encode(self, h: Float[Tensor, "B C F4 T4"]) -> Float[Tensor, "B D"]:
        """Return the representation, given the output of the convolutions."""
        local = _local_features(h)
        frames = (local, self.mlp(local))  # pooled separately, which saves a concatenation
        return cat([part.amax(dim=1) + part.mean(dim=1) for part in frames], dim=-1)

    def frame_features(self, h: Float[Tensor, "B C F4 T4"]) -> Float[Tensor, "B T4 D"]:
        """Return local and global features of every 4 frames, given the convolutions' output."""
        local = _local_features(h)
        return cat([local, self.mlp(local)], dim=-1)


def _local_features(h: Float[Tensor, "B C F4 T4"]) -> Float[Tensor, "B T4 F4*C"]:
    return h.permute(0, 3, 2, 1).flatten(2)  # channels fastest


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Convolution, batch norm, pooling, ReLU: the last two commute; so ReLU has less to do."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
    )
