"""wav2vec 2.0 (Baevski et al. 2020) or HuBERT, from torchaudio's bundles.

The baseline of HEAR and the paper was trained on 100,000 hours of VoxPopuli; torchaudio has no
bundle with those weights, so scores are at best close to the published ones.

Timestamp embeddings are the outputs of the last transformer layer, one every 320 samples (20 ms),
centered on the 400 samples that the convolutions see; the scene embedding is their mean.
`hear.hop_ms` does not apply. Audio is at 16 kHz; bundles that require it get each clip scaled to
mean 0 and variance 1.
"""

from pathlib import Path

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.repository import locate
from pipeline.hear.api.inputs import deterministic, validate_audio
from pipeline.hear.models import baselines


class Wav2Vec2(nn.Module):
    """torchaudio's network with the attributes that HEAR requires."""

    def __init__(self, network: nn.Module, size: int, sample_rate: int, normalized: bool) -> None:
        super().__init__()
        self.network = network
        self.normalized = normalized  # whether clips are scaled to mean 0 and variance 1
        self.sample_rate = sample_rate  # Hz
        self.scene_embedding_size = self.timestamp_embedding_size = size
        layers = [block.conv for block in network.feature_extractor.conv_layers]  # type: ignore
        self.hop, self.reach = 1, 1  # samples
        for conv in layers:
            self.reach += (conv.kernel_size[0] - 1) * self.hop
            self.hop *= conv.stride[0]

    def frames(self, audio: Float[Tensor, "B S"]) -> Float[Tensor, "B N D"]:
        """Return the last layer's outputs."""
        padded = functional.pad(audio, (0, max(0, self.reach - audio.shape[-1])))
        if self.normalized:
            padded = functional.layer_norm(padded, padded.shape[-1:])
        outputs: Tensor = torch.cat([self.network(clip[None])[0] for clip in padded])
        return outputs


def load_model(model_file_path: str = "") -> Wav2Vec2:
    """Return the model described by a folder's model.json, with its weights.

    Raises:
        FileNotFoundError: model.json or the weights are missing.
        ValueError: model.json is invalid, the bundle does not exist, or the weights do not fit it.
    """
    settings = baselines.read(Path(model_file_path))
    name, weights = settings["bundle"], Path(locate(settings["weights"]))
    bundle = getattr(torchaudio.pipelines, name, None)
    if bundle is None:
        bundles = [n for n in dir(torchaudio.pipelines) if n.startswith(("WAV2VEC2", "HUBERT"))]
        raise ValueError(
            f"hear.wav2vec2.bundle = {name!r}: torchaudio.pipelines has {', '.join(bundles)}."
        )
    network = torchaudio.models.wav2vec2_model(**bundle._params)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        raise ValueError(f"{weights} does not hold the weights of {name}: {text}") from None
    size = bundle._params["encoder_embed_dim"]
    normalized = getattr(bundle, "_normalize_waveform", False)
    return Wav2Vec2(network, size, bundle.sample_rate, normalized).eval()


@torch.inference_mode()
def get_scene_embeddings(audio: Tensor, model: Wav2Vec2) -> Tensor:
    """Return one embedding per clip: audio [n, samples] to [n, D]."""
    audio = validate_audio(audio, model)
    with deterministic(model):
        return model.frames(audio).mean(dim=1)


@torch.inference_mode()
def get_timestamp_embeddings(audio: Tensor, model: Wav2Vec2) -> tuple[Tensor, Tensor]:
    """Return embeddings [n, N, D] and timestamps [n, N] in ms."""
    audio = validate_audio(audio, model)
    with deterministic(model):
        embeddings = model.frames(audio)
    centers = model.hop * torch.arange(embeddings.shape[1], device=audio.device) + model.reach / 2
    return embeddings, (1000 / model.sample_rate * centers).repeat(len(audio), 1)
