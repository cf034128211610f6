"""The encoders f: normalized log-mel [B, 1, F, T] to representation y [B, D] (paper section 2.2).

Every encoder has `embed_dim` (D) and `segment_frames`, the only number of frames that it takes, or
None if it takes any.
"""

from pipeline.encoders.audiontt import AudioNTT
from pipeline.encoders.params import AudioNTTParams, EncoderParams
from pipeline.encoders.vit import ViT

Encoder = AudioNTT | ViT


def build_encoder(name: str, params: EncoderParams, n_mels: int, crop_frames: int) -> Encoder:
    """Return the encoder `name` with random weights, drawn from torch's global generator.

    Raises:
        ValueError: the input size does not suit the encoder.
    """
    params.check_input(n_mels, crop_frames)
    if isinstance(params, AudioNTTParams):
        return AudioNTT(params, n_mels)
    return ViT(params, n_mels, crop_frames, conv_stem=name == "vitc")
