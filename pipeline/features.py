"""The log-mel front end (paper section 3.1), the only one: shards, pre-training and HEAR use it.

Mel power spectrogram with a periodic Hann window, HTK mel scale, triangles of height 1, centred
frames with reflected edges; then the natural logarithm of (power + float32 epsilon). `T` frames of
`S` samples: T = 1 + S // hop_length.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from pipeline.params.data import LogMelParams

EPSILON = float(np.finfo(np.float32).eps)
SILENCE = float(np.log(EPSILON))  # log-mel of digital silence, -15.94


class LogMel(nn.Module):
    """Waveform in [-1, 1] at `params.sample_rate` to log-mel spectrogram."""

    def __init__(self, params: LogMelParams) -> None:
        super().__init__()
        self.params = params
        self.mel = MelSpectrogram(
            sample_rate=params.sample_rate,
            n_fft=params.n_fft,
            win_length=params.win_length,
            hop_length=params.hop_length,
            n_mels=params.n_mels,
            f_min=params.f_min,
            f_max=params.f_max,
            power=2.0,
        )

    @property
    def min_samples(self) -> int:
        """Fewest samples that the reflected edges of a centred frame need."""
        return self.params.n_fft // 2 + 1

    def forward(self, wave: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch F T"]:
        """Return ln(mel power + epsilon).

        Raises:
            ValueError: the waveform is shorter than half a window, so no frame can be centred.
        """
        if wave.shape[-1] < self.min_samples:
            raise ValueError(
                f"A waveform needs at least {self.min_samples} samples for one frame "
                f"(logmel.n_fft = {self.params.n_fft}), got {wave.shape[-1]}."
            )
        return (self.mel(wave) + EPSILON).log()
