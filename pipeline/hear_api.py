"""The HEAR API (https://hearbenchmark.com/hear-api.html) of a checkpoint.

A clip's embedding depends on that clip alone: dropout is off, batch norm uses its running
statistics, the log-mel is normalized with the statistics of the pre-training data, and the front
end is the checkpoint's own. It works with every tool that takes a HEAR module, such as
`hear-validator pipeline.hear_api -m data/pretrain`.

Scene embedding: one representation of the whole clip. An encoder of fixed input length gets
consecutive segments, the last one filled up with silence; its representations are averaged with
the number of real frames as weights.

Timestamp embeddings: one representation per window (report section 3.4), windows centred on 0,
hop, 2 hop ... ms. The clip is padded with half a window of zeros at both ends and has one STFT, of
which every window is a slice. One STFT per window differs in the frames whose analysis window
reaches over the slice's edge (4 of 96 at either side): it would mirror the audio there, whereas
a slice sees what is really around it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline import checkpoint
from pipeline.checkpoint import Checkpoint
from pipeline.features import SILENCE, LogMel
from pipeline.params.hear import front_end_hops

WINDOW_MS = 950.0  # of a timestamp embedding, the authors' choice
HOP_MS = 50.0
MIN_FRAMES = 4  # that an encoder takes
BATCH_FRAMES = 96 * 32  # in one forward pass, unless one clip is longer


class HearModel(nn.Module):
    """An encoder with its front end and statistics, and the attributes that HEAR asks for."""

    def __init__(self, source: Checkpoint, window_ms: float, hop_ms: float) -> None:
        super().__init__()
        self.encoder: nn.Module = source.encoder
        self.log_mel = LogMel(source.log_mel)
        self.mean, self.std = source.mean, source.std
        self.segment_frames: int | None = source.encoder.segment_frames
        self.sample_rate = source.log_mel.sample_rate  # Hz
        self.scene_embedding_size = source.encoder.embed_dim
        self.timestamp_embedding_size = source.encoder.embed_dim
        self.hop_ms = hop_ms
        self.stft_hop = source.log_mel.hop_length  # samples
        self.window_steps = front_end_hops("window_ms", window_ms, source.log_mel)
        self.hop_steps = front_end_hops("hop_ms", hop_ms, source.log_mel)
        if self.window_steps * self.stft_hop < self.min_samples:
            raise ValueError(
                f"hear.window_ms = {window_ms} ms is shorter than the {self.min_samples} samples "
                f"that the encoder needs at {self.sample_rate} Hz. Lengthen it."
            )
        # Convolutions need a third less time with channels last.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def min_samples(self) -> int:
        """Fewest samples that give an encoder's fewest frames."""
        return max(self.log_mel.min_samples, (MIN_FRAMES - 1) * self.stft_hop)

    def normalized(self, audio: Float[Tensor, "B S"]) -> Float[Tensor, "B F T"]:
        """Return the log-mel in standard deviations of the pre-training data."""
        return (self.log_mel(audio) - self.mean) / self.std

    def embed(self, log_mel: Float[Tensor, "B F T"]) -> Float[Tensor, "B D"]:
        """Return one representation for each normalized log-mel of any length."""
        if self.segment_frames is None:
            return self.encoder(log_mel[:, None])
        real = log_mel.shape[-1]
        segments = -(-real // self.segment_frames)
        padding = segments * self.segment_frames - real
        silence = (SILENCE - self.mean) / self.std
        padded = functional.pad(log_mel, (0, padding), value=silence)
        pieces = padded.unflatten(-1, (segments, -1)).movedim(2, 1)  # [B, segments, F, T]
        batches = pieces.flatten(0, 1)[:, None].split(_batch_size(self.segment_frames))
        embedded = torch.cat([self.encoder(batch) for batch in batches])
        weights = torch.full((segments,), self.segment_frames / real, device=log_mel.device)
        weights[-1] -= padding / real
        return torch.einsum("bnd,n->bd", embedded.unflatten(0, (-1, segments)), weights)

    def timestamps(self, samples: int) -> Float[Tensor, " N"]:
        """Return the centres of a clip's windows in ms."""
        return self.hop_ms * torch.arange(samples // (self.hop_steps * self.stft_hop) + 1)

    def windows(self, audio: Float[Tensor, "B S"]) -> Float[Tensor, "B N F T"]:
        """Return the normalized log-mel of every window of each clip, as a view into one array."""
        half = self.window_steps * self.stft_hop / 2
        padded = functional.pad(audio, (int(half), int(half + 0.5)))
        frames = self.window_steps + 1
        return self.normalized(padded).unfold(-1, frames, self.hop_steps).movedim(2, 1)


def load_model(
    model_file_path: str = "",
    normalization: str = "dataset",
    window_ms: float = WINDOW_MS,
    hop_ms: float = HOP_MS,
) -> HearModel:
    """Return a checkpoint as a HEAR model on the CPU.

    Args:
        model_file_path: folder of the checkpoint, or its encoder.safetensors.
        normalization: whose statistics normalize the log-mel; "dataset", the pre-training data's.
        window_ms: audio behind one timestamp embedding.
        hop_ms: between timestamps.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: no path is given, the checkpoint is damaged, the normalization is unknown, or
            window or hop is no multiple of the hop of its front end, or the window too short.
    """
    if not model_file_path:
        raise ValueError(
            "load_model needs the path of a checkpoint: its folder, such as data/pretrain, or the "
            "encoder.safetensors in it (hear-eval-kit: --model data/pretrain)."
        )
    if normalization != "dataset":
        raise ValueError(f"hear.normalization = {normalization!r}: must be 'dataset'.")
    return HearModel(checkpoint.load(Path(model_file_path)), window_ms, hop_ms).eval()


@torch.inference_mode()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Return one embedding per clip: audio [n, samples] in [-1, 1] to float32 [n, D].

    Clips too short for the encoder's fewest frames are followed by zeros.

    Raises:
        ValueError: the audio has another shape, no samples, integer or non-finite values.
    """
    audio = _checked(audio, model)
    audio = functional.pad(audio, (0, max(0, model.min_samples - audio.shape[-1])))
    frames = 1 + audio.shape[-1] // model.stft_hop
    with _repeatable(model):
        batches = audio.split(_batch_size(frames))
        return torch.cat([model.embed(model.normalized(batch)) for batch in batches])


@torch.inference_mode()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return embeddings over time: audio [n, samples] to float32 [n, N, D] and timestamps [n, N].

    Timestamps are in ms from 0; N is the number of whole hops in the clip, plus one.

    Raises:
        ValueError: the audio has another shape, no samples, integer or non-finite values.
    """
    audio = _checked(audio, model)
    timestamps = model.timestamps(audio.shape[-1]).to(audio.device)
    with _repeatable(model):
        embeddings = torch.stack([_embed_windows(clip, model) for clip in audio])
    return embeddings, timestamps.repeat(len(audio), 1)


def _embed_windows(clip: Float[Tensor, " S"], model: HearModel) -> Float[Tensor, "N D"]:
    windows = model.windows(clip[None])[0]
    batches = windows.split(_batch_size(windows.shape[-1]))
    return torch.cat([model.embed(batch) for batch in batches])


def _checked(audio: Tensor, model: HearModel) -> Float[Tensor, "B S"]:
    """Return the audio as float32 on the model's device."""
    if audio.ndim != 2 or 0 in audio.shape:
        raise ValueError(
            f"audio must have the shape [clips, samples], neither of them 0, "
            f"got {list(audio.shape)}."
        )
    if not audio.is_floating_point():
        raise ValueError(f"audio must be floating point in [-1, 1], got {audio.dtype}.")
    faulty = (~audio.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if faulty:
        raise ValueError(f"audio has values that are not finite in clips {faulty[:10]}.")
    return audio.to(next(model.parameters()).device, torch.float32)


@contextmanager
def _repeatable(model: HearModel) -> Iterator[None]:
    """Evaluation mode, whatever the caller set, and full float32 precision in convolutions."""
    model.eval()
    with ExitStack() as stack:
        if torch.backends.cudnn.is_available():
            full = {"enabled": True, "deterministic": True, "allow_tf32": False}
            stack.enter_context(torch.backends.cudnn.flags(**full))
        stack.enter_context(torch.autocast(next(model.parameters()).device.type, enabled=False))
        yield


def _batch_size(frames: int) -> int:
    return max(1, BATCH_FRAMES // frames)
