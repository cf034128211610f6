"""Plain statistics of the log-mel as a model: how far the front end alone gets.

Scene embedding: mean and standard deviation of every mel bin over time, [2 F]. Timestamp
embeddings: the same for each window (`pipeline.hear.api.timestamps`), concatenated over window
lengths.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.core.params import check
from pipeline.features.params import LogMelParams
from pipeline.hear.api.inputs import validate_audio
from pipeline.hear.api.timestamps import WindowedLogMel
from pipeline.hear.models import baselines


class MelStatistics(nn.Module):
    """The front end with the attributes that HEAR requires."""

    def __init__(
        self, log_mel: LogMelParams, window_ms: list[float], hop_ms: float, edges: str
    ) -> None:
        super().__init__()
        self.front_end = WindowedLogMel(log_mel, window_ms, hop_ms)
        self.edges = edges
        self.sample_rate = log_mel.sample_rate  # Hz
        self.scene_embedding_size = 2 * log_mel.n_mels
        self.timestamp_embedding_size = len(window_ms) * self.scene_embedding_size


def load_model(
    model_file_path: str = "",
    window_ms: list[float] | None = None,
    hop_ms: float = 50.0,
    edges: str = "context",
) -> MelStatistics:
    """Return the model of the front end in a folder's model.json; windows default to 950 ms.

    Raises:
        FileNotFoundError, ValueError: model.json is missing or invalid.
    """
    path = Path(model_file_path)
    log_mel = check(baselines.read(path)["logmel"], LogMelParams, prefix="logmel", path=path)
    return MelStatistics(log_mel, window_ms or [950.0], hop_ms, edges)


@torch.inference_mode()
def get_scene_embeddings(audio: Tensor, model: MelStatistics) -> Tensor:
    """Return one embedding per clip: audio [n, samples] to [n, 2 F]."""
    return _statistics(model.front_end.clips(validate_audio(audio, model)))


@torch.inference_mode()
def get_timestamp_embeddings(audio: Tensor, model: MelStatistics) -> tuple[Tensor, Tensor]:
    """Return embeddings [n, N, 2 F] and timestamps [n, N] in ms."""
    audio = validate_audio(audio, model)
    front_end = model.front_end

    def embed(clip: Float[Tensor, " S"]) -> Float[Tensor, "N D"]:
        windows = (front_end.windows(clip, n, model.edges) for n in front_end.window_steps)
        return torch.cat([_statistics(log_mel) for log_mel in windows], dim=-1)

    times = front_end.timestamps(audio.shape[-1]).to(audio.device)
    return torch.stack([embed(clip) for clip in audio]), times.repeat(len(audio), 1)


def _statistics(log_mel: Float[Tensor, "B F T"]) -> Float[Tensor, "B D"]:
    std, mean = torch.std_mean(log_mel, dim=-1, correction=0)
    return torch.cat([mean, std], dim=-1)
