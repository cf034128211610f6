"""Log-mels of clips, and of the windows behind timestamp embeddings (report section 3.4).

Windows are centered on 0, hop, 2 hop ... ms; the clip is padded with half a window of zeros at both
ends. `hear.edges` selects how a window gets its log-mel:

    context    as a slice of the clip's single STFT, whose edge frames see the surrounding audio
    cut        from its audio alone, cut out and transformed by itself, as the authors do

The two differ in the frames whose analysis window crosses the window's edge (4 of 96 on either
side): cut audio is mirrored there. At 950 ms every 50 ms, a single STFT costs a nineteenth of one
STFT per window.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline.features.front_end import LogMel
from pipeline.features.params import LogMelParams
from pipeline.hear.api.inputs import device_of
from pipeline.hear.api.windows import duration_hops, min_samples, window_hops

BATCH_FRAMES = {"cpu": 96 * 32, "cuda": 96 * 512}  # per pass, unless one clip is longer
STFT_FRAMES = {"cpu": 96 * 8, "cuda": 96 * 512}  # at a time: fits the cache of a core


class WindowedLogMel(nn.Module):
    """Log-mel front end that also cuts windows, in whole hops of the STFT."""

    def __init__(self, params: LogMelParams, window_ms: list[float], hop_ms: float) -> None:
        super().__init__()
        self.log_mel = LogMel(params)
        self.hop_ms = hop_ms
        self.stft_hop = params.hop_length  # samples
        self.hop_steps = duration_hops("hop_ms", hop_ms, params)
        self.window_steps = [window_hops(ms, params) for ms in window_ms]
        self.min_samples = min_samples(params)

    def batch_size(self, frames: int) -> int:
        """Return how many items of this many frames fit into one pass."""
        return max(1, BATCH_FRAMES[device_of(self).type] // frames)

    def clips(self, audio: Float[Tensor, "B S"]) -> Float[Tensor, "B F T"]:
        """Return the log-mels of whole clips, zero-padded if too short for an encoder."""
        audio = functional.pad(audio, (0, max(0, self.min_samples - audio.shape[-1])))
        return self._log_mels(audio)

    def timestamps(self, samples: int) -> Float[Tensor, " N"]:
        """Return the centers of a clip's windows in ms."""
        return self.hop_ms * torch.arange(samples // (self.hop_steps * self.stft_hop) + 1)

    def dense(self, clip: Float[Tensor, " S"], steps: int) -> Float[Tensor, "F L"]:
        """Return the log-mel that contains all windows of `steps` hops, with edges `context`."""
        return self.log_mel(self._padded(clip, steps))

    def slices(self, dense: Float[Tensor, "F L"], steps: int) -> Float[Tensor, "N F T"]:
        """Return the windows of a dense log-mel, as a view."""
        return dense.unfold(-1, steps + 1, self.hop_steps).movedim(1, 0)

    def cut(self, clip: Float[Tensor, " S"], steps: int) -> Float[Tensor, "N F T"]:
        """Return the log-mels of windows of `steps` hops, with edges `cut`."""
        size, hop = steps * self.stft_hop, self.hop_steps * self.stft_hop
        return self._log_mels(self._padded(clip, steps).unfold(-1, size, hop))

    def windows(self, clip: Float[Tensor, " S"], steps: int, edges: str) -> Float[Tensor, "N F T"]:
        """Return the log-mels of windows of `steps` hops."""
        if edges == "cut":
            return self.cut(clip, steps)
        return self.slices(self.dense(clip, steps), steps)

    def _log_mels(self, audio: Float[Tensor, "B S"]) -> Float[Tensor, "B F T"]:
        frames = 1 + audio.shape[-1] // self.stft_hop
        batches = audio.split(max(1, STFT_FRAMES[device_of(self).type] // frames))
        return torch.cat([self.log_mel(batch) for batch in batches])

    def _padded(self, clip: Float[Tensor, " S"], steps: int) -> Float[Tensor, " P"]:
        half = steps * self.stft_hop / 2
        return functional.pad(clip, (int(half), int(half + 0.5)))
