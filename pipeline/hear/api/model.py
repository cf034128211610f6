"""A checkpoint as a model with the HEAR API.

A clip's embedding depends on that clip alone: dropout is off, batch norm uses its running
statistics, the log-mel is normalized with the statistics of the pre-training data, and the front
end is that of the checkpoint. (With `mode` or `normalization` = `reference`, embeddings depend on
all clips of the call, as in the authors' code.)

Scene embedding: one representation of the whole clip. An encoder with a fixed input length gets
consecutive segments, the last one padded with silence; their representations are averaged, weighted
by the number of real frames.

Timestamp embeddings: one representation per window (`timestamps`). AudioNTT computes the shared
part of overlapping windows only once (`sliding`).
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.core.params import check
from pipeline.encoders import checkpoint
from pipeline.encoders.audiontt import AudioNTT
from pipeline.encoders.checkpoint import Checkpoint
from pipeline.features.front_end import SILENCE
from pipeline.hear.api import layers as layer_outputs
from pipeline.hear.api import sliding
from pipeline.hear.api.inputs import deterministic, validate_audio
from pipeline.hear.api.timestamps import WindowedLogMel
from pipeline.hear.params import ExtractionParams, check_layers

REFERENCE_WIN_LENGTH = 400  # samples, 25 ms, in the authors' wrapper; pre-training has 1024

Statistics = tuple[float, float]  # mean and standard deviation of log-mels


class HearModel(nn.Module):
    """An encoder with its front end and statistics, and the attributes that HEAR requires."""

    def __init__(
        self, source: Checkpoint, params: ExtractionParams, statistics: Statistics
    ) -> None:
        super().__init__()
        self.params = params
        self.encoder = source.encoder
        self.front_end = WindowedLogMel(source.log_mel, params.window_ms, params.hop_ms)
        self.mean, self.std = statistics
        self.segment_frames: int | None = source.encoder.segment_frames
        self.sample_rate = source.log_mel.sample_rate  # Hz
        size = layer_outputs.representation_size(
            source.encoder, source.log_mel.n_mels, params.layers
        )
        size += source.log_mel.n_mels if params.mel_mean else 0
        self.scene_embedding_size = size
        self.timestamp_embedding_size = len(params.window_ms) * size
        if params.mode == "ours":
            fold_batch_norms(self.encoder)
        # Channels last halves the time of convolution and pooling.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def batch_dependent(self) -> bool:
        """Whether an embedding depends on the other clips of the call."""
        return self.params.normalization == "reference"

    def scene_embeddings(self, audio: Float[Tensor, "B S"]) -> Float[Tensor, "B E"]:
        """Return one embedding per clip."""
        log_mel = self.front_end.clips(audio)
        mean, std = self.scene_statistics(log_mel)
        silence = (SILENCE - mean) / std
        batches = ((log_mel - mean) / std).split(self.front_end.batch_size(log_mel.shape[-1]))
        return torch.cat([self.embed(batch, silence) for batch in batches])

    def timestamp_embeddings(self, audio: Float[Tensor, "B S"]) -> Float[Tensor, "B N E"]:
        """Return one embedding per window; those of several window lengths are concatenated."""
        return torch.cat(
            [self._embed_windows(audio, n) for n in self.front_end.window_steps], dim=-1
        )

    def scene_statistics(self, log_mel: Float[Tensor, "B F T"]) -> Statistics:
        """Return the mean and standard deviation that normalize the clips of one call.

        The reference takes those of all values for a ViT, and averages the mean and standard
        deviation of each clip for a convolutional encoder.
        """
        if not self.batch_dependent:
            return self.mean, self.std
        dims = (0, 1, 2) if self.segment_frames else (1, 2)
        return float(log_mel.mean(dim=dims).mean()), float(log_mel.std(dim=dims).mean())

    def window_statistics(self, windows: list[Float[Tensor, "N F T"]]) -> Statistics:
        """Return the mean and standard deviation that normalize the windows of one call.

        The reference takes those of all values, divided by the number of windows.
        """
        if not self.batch_dependent:
            return self.mean, self.std
        values = torch.cat(windows)
        return float(values.mean()) / len(values), float(values.std()) / len(values)

    def embed(self, log_mel: Float[Tensor, "B F T"], silence: float) -> Float[Tensor, "B E"]:
        """Return one embedding for each normalized log-mel of any length."""
        embedding = self.represent(log_mel, silence)
        if not self.params.mel_mean:
            return embedding
        return torch.cat([embedding, log_mel.mean(dim=-1)], dim=-1)

    def represent(self, log_mel: Float[Tensor, "B F T"], silence: float) -> Float[Tensor, "B D"]:
        """Return one representation per clip, averaged over segments if their length is fixed."""
        if self.segment_frames is None:
            return layer_outputs.represent(self.encoder, log_mel[:, None], self.params.layers)
        frames = log_mel.shape[-1]
        segments = -(-frames // self.segment_frames)
        padding = segments * self.segment_frames - frames
        padded = functional.pad(log_mel, (0, padding), value=silence)
        embedded = self.represent_segments(padded.unflatten(-1, (segments, -1)).movedim(2, 1))
        weights = torch.full((segments,), self.segment_frames / frames, device=log_mel.device)
        weights[-1] -= padding / frames
        return torch.einsum("bnd,n->bd", embedded, weights)

    def represent_segments(self, segments: Float[Tensor, "B N F T"]) -> Float[Tensor, "B N D"]:
        """Return the representation of each segment."""
        batches = segments.flatten(0, 1)[:, None].split(
            self.front_end.batch_size(segments.shape[-1])
        )
        representations = [
            layer_outputs.represent(self.encoder, batch, self.params.layers) for batch in batches
        ]
        return torch.cat(representations).unflatten(0, segments.shape[:2])

    def _embed_windows(self, audio: Float[Tensor, "B S"], steps: int) -> Float[Tensor, "B N E"]:
        front_end, edges = self.front_end, self.params.edges
        if isinstance(self.encoder, AudioNTT) and self._can_slide(steps):
            dense = [(front_end.dense(clip, steps) - self.mean) / self.std for clip in audio]
            return torch.stack([self._slide_over(self.encoder, clip, steps) for clip in dense])
        windows = [front_end.windows(clip, steps, edges) for clip in audio]
        mean, std = self.window_statistics(windows)
        silence = (SILENCE - mean) / std
        size = front_end.batch_size(steps + 1)
        return torch.stack(
            [
                torch.cat([self.embed((part - mean) / std, silence) for part in clip.split(size)])
                for clip in windows
            ]
        )

    def _can_slide(self, steps: int) -> bool:
        plain = self.params.edges == "context" and self.params.layers == "last"
        shared = sliding.shares_work(steps + 1, self.front_end.hop_steps)
        return plain and shared and not self.batch_dependent

    def _slide_over(
        self, encoder: AudioNTT, dense: Float[Tensor, "F L"], steps: int
    ) -> Float[Tensor, "N E"]:
        """Return the embeddings of a clip's windows, as many at a time as fit into one pass."""
        hop = self.front_end.hop_steps
        count = (dense.shape[-1] - steps - 1) // hop + 1
        span = max(1, self.front_end.batch_size(1) // hop)  # windows
        spans = []
        for first in range(0, count, span):
            end = (min(first + span, count) - 1) * hop + steps + 1
            spans.append(sliding.slide(encoder, dense[:, first * hop : end], steps + 1, hop))
        embeddings = torch.cat(spans)
        if not self.params.mel_mean:
            return embeddings
        return torch.cat([embeddings, self.front_end.slices(dense, steps).mean(dim=-1)], dim=-1)


class ReferenceModel(HearModel):
    """The authors' wrapper with its faults (docs/reference-faults.md, B1 to B5).

    Active dropout draws from torch's global generator.
    """

    def __init__(
        self, source: Checkpoint, params: ExtractionParams, statistics: Statistics
    ) -> None:
        super().__init__(source, params, statistics)
        log_mel = source.log_mel.model_copy(update={"win_length": REFERENCE_WIN_LENGTH})  # B2
        self.front_end = WindowedLogMel(log_mel, params.window_ms, params.hop_ms)

    def scene_embeddings(self, audio: Float[Tensor, "B S"]) -> Float[Tensor, "B E"]:
        """Return one embedding per clip, from a convolutional encoder in training mode (B1)."""
        if self.segment_frames:
            return super().scene_embeddings(audio)
        log_mel = self.front_end.clips(audio)
        mean, std = self.scene_statistics(log_mel)
        self.encoder.train()
        return torch.cat([self.represent((clip[None] - mean) / std, 0.0) for clip in log_mel])

    def represent(self, log_mel: Float[Tensor, "B F T"], silence: float) -> Float[Tensor, "B D"]:
        """Return one representation per clip; all segments weigh the same, even empty ones (B5)."""
        if self.segment_frames is None:
            return self.encoder(log_mel[:, None])
        padding = self.segment_frames - log_mel.shape[-1] % self.segment_frames
        padded = functional.pad(log_mel, (0, padding))
        segments = padded.unflatten(-1, (-1, self.segment_frames)).movedim(2, 1)
        return self.represent_segments(segments).mean(dim=1)


def fold_batch_norms(encoder: nn.Module) -> None:
    """Fold each batch norm, an affine map in evaluation mode, into the convolution before it."""
    for block in [module for module in encoder.modules() if isinstance(module, nn.Sequential)]:
        for i, (conv, norm) in enumerate(pairwise(block)):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[i], block[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def load_model(
    model_file_path: str = "",
    mode: str = "ours",
    normalization: str = "dataset",
    window_ms: float | list[float] = 950.0,
    hop_ms: float = 50.0,
    edges: str = "context",
    layers: str = "last",
    mel_mean: bool = False,
    statistics: Statistics | None = None,
) -> HearModel:
    """Return a checkpoint as a HEAR model on the CPU.

    Args:
        model_file_path: folder of the checkpoint, or its encoder.safetensors.
        mode: as the following options, see section `hear` of params.yaml; defaults: the paper's.
        statistics: mean and standard deviation of a task's training log-mels, for normalization
            "task" (`pipeline.hear.api.statistics`).

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the path is empty, the checkpoint is damaged, or an option is invalid or does
            not fit another one, the encoder or the front end.
    """
    options: dict[str, Any] = {"mode": mode, "normalization": normalization, "window_ms": window_ms}
    options |= {"hop_ms": hop_ms, "edges": edges, "layers": layers, "mel_mean": mel_mean}
    params = _check_arguments(model_file_path, options, statistics)
    source = checkpoint.load(Path(model_file_path))
    check_layers(layers, source.encoder_name)
    kind = ReferenceModel if mode == "reference" else HearModel
    return kind(source, params, statistics or (source.mean, source.std)).eval()


def _check_arguments(
    model_file_path: str, options: dict[str, Any], statistics: Statistics | None
) -> ExtractionParams:
    """Return the options of `load_model` after checking its arguments."""
    if not model_file_path:
        raise ValueError(
            "load_model needs the path of a checkpoint: its folder, such as data/pretrained, or "
            "the encoder.safetensors in it (hear-eval-kit: --model data/pretrained)."
        )
    params = check(options, ExtractionParams, prefix="hear", path=Path("load_model"))
    if (params.normalization == "task") != (statistics is not None):
        raise ValueError(
            "load_model needs `statistics`, mean and standard deviation of a task's log-mels, with "
            f"normalization = 'task' and only then; got normalization = {params.normalization!r}, "
            f"statistics = {statistics}."
        )
    return params


@torch.inference_mode()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Return one embedding per clip: audio [n, samples] in [-1, 1] to float32 [n, D].

    Clips too short for the encoder are padded with zeros.

    Raises:
        ValueError: the audio has another shape, no samples, integer or non-finite values.
    """
    audio = validate_audio(audio, model)
    with deterministic(model):
        return model.scene_embeddings(audio)


@torch.inference_mode()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return float32 embeddings [n, N, D] and timestamps [n, N] in ms for audio [n, samples].

    Timestamps start at 0; N is the number of whole hops in the clip, plus one.

    Raises:
        ValueError: the audio has another shape, no samples, integer or non-finite values.
    """
    audio = validate_audio(audio, model)
    timestamps = model.front_end.timestamps(audio.shape[-1]).to(audio.device)
    with deterministic(model):
        return model.timestamp_embeddings(audio), timestamps.repeat(len(audio), 1)
