"""CREPE (Kim et al. 2018), a pitch tracker: a baseline of HEAR and the paper.

An embedding is the flattened output of the fifth of six convolution layers for a frame of 1024
samples at 16 kHz: 2048 numbers in the full model. The clip is zero-padded so that frames are
centered, and each frame is scaled to mean 0 and standard deviation 1. Timestamp embeddings have a
hop of `hear.hop_ms`; the scene embedding is the mean over frames with a hop of
`hear.crepe.scene_hop_ms` (HEAR's baseline: 50 and 250).
"""

import importlib
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline.hear.api.inputs import deterministic, validate_audio
from pipeline.hear.models import baselines

SAMPLE_RATE = 16_000  # Hz
FRAME = 1024  # samples
MIN_STD = 1e-10  # for silent frames
BATCH = {"cpu": 64, "cuda": 2048}  # frames per pass


class Crepe(nn.Module):
    """torchcrepe's network with the attributes that HEAR requires."""

    def __init__(self, network: nn.Module, hop_ms: float, scene_hop_ms: float) -> None:
        super().__init__()
        self.network = network
        self.hop_ms, self.scene_hop_ms = hop_ms, scene_hop_ms
        self.sample_rate = SAMPLE_RATE
        size: int = network.in_features  # type: ignore[assignment]
        self.scene_embedding_size = self.timestamp_embedding_size = size

    def frames(self, clip: Float[Tensor, " S"], hop_ms: float) -> Float[Tensor, "N D"]:
        """Return the embeddings of a clip's frames."""
        padded = functional.pad(clip, (FRAME // 2, FRAME // 2))
        frames = padded.unfold(0, FRAME, _samples(hop_ms))
        batches = frames.split(BATCH[clip.device.type])
        return torch.cat([self._embed(batch) for batch in batches])

    def _embed(self, frames: Float[Tensor, "N S"]) -> Float[Tensor, "N D"]:
        centered = frames - frames.mean(dim=1, keepdim=True)
        scaled = centered / centered.std(dim=1, keepdim=True).clamp(min=MIN_STD)
        output: Tensor = self.network(scaled, embed=True)  # [N, channels, positions, 1]
        return output.flatten(1)


def load_model(model_file_path: str = "", hop_ms: float = 50.0) -> Crepe:
    """Return the model described by a folder's model.json, with the weights of the package.

    Raises:
        FileNotFoundError, ValueError: model.json is missing or invalid.
        RuntimeError: torchcrepe is not installed.
    """
    settings = baselines.read(Path(model_file_path))
    try:
        torchcrepe = importlib.import_module("torchcrepe")
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{error}: CREPE needs `pip install torchcrepe`.") from None
    size = settings["size"]
    network = torchcrepe.Crepe(size)
    weights = Path(str(torchcrepe.__file__)).parent / "assets" / f"{size}.pth"
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return Crepe(network, hop_ms, settings["scene_hop_ms"]).eval()


@torch.inference_mode()
def get_scene_embeddings(audio: Tensor, model: Crepe) -> Tensor:
    """Return one embedding per clip: audio [n, samples] to [n, D]."""
    audio = validate_audio(audio, model)
    with deterministic(model):
        return torch.stack([model.frames(clip, model.scene_hop_ms).mean(dim=0) for clip in audio])


@torch.inference_mode()
def get_timestamp_embeddings(audio: Tensor, model: Crepe) -> tuple[Tensor, Tensor]:
    """Return embeddings [n, N, D] and timestamps [n, N] in ms."""
    audio = validate_audio(audio, model)
    with deterministic(model):
        embeddings = torch.stack([model.frames(clip, model.hop_ms) for clip in audio])
    times = model.hop_ms * torch.arange(embeddings.shape[1], device=audio.device)
    return embeddings, times.repeat(len(audio), 1)


def _samples(milliseconds: float) -> int:
    return round(milliseconds * SAMPLE_RATE / 1000)
