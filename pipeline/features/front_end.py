"""The log-mel front end (paper section 3.1), the only one: shards, pre-training and HEAR use it.

Mel power spectrogram with a periodic Hann window, HTK mel scale, triangles of height 1, centred
frames with reflected edges; then the natural logarithm of (power + float32 epsilon). `T` frames of
`S` samples: T = 1 + S // hop_length.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from pipeline.features.params import LogMelParams

EPSILON = float(np.finfo(np.float32).eps)
SILENCE = float(np.log(EPSILON))  # log-mel of digital silence, -15.94


class LogMel(nn.Module):
    """Waveform in [-1, 1] at `params.sample_rate` to log-mel spectrogram."""

    window: Tensor  # [win_length]
    filters: Tensor  # [bins, F]

    def __init__(self, params: LogMelParams) -> None:
        super().__init__()
        self.params = params
        self.register_buffer("window", torch.hann_window(params.win_length), persistent=False)
        bins = params.n_fft // 2 + 1
        filters = melscale_fbanks(
            bins, params.f_min, params.f_max, params.n_mels, params.sample_rate
        )
        self.register_buffer("filters", filters, persistent=False)

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
        sizes = (self.params.n_fft, self.params.hop_length, self.params.win_length)
        waves = wave.reshape(-1, wave.shape[-1])
        spectra = torch.stft(waves, *sizes, self.window, return_complex=True).mT
        # The squares of the parts are the power; abs() would be half of the time for its root.
        real, imaginary = torch.view_as_real(spectra).unbind(-1)
        mel = (real.square() + imaginary.square()) @ self.filters
        return (mel.mT + EPSILON).log().reshape(*wave.shape[:-1], *mel.mT.shape[-2:])
