"""Made-up recordings that differ like real ones, and lossy copies of them."""

import io
from functools import cache

import numpy as np
import soundfile
import soxr

RATE = 16_000  # Hz


@cache
def recording(seconds, seed, rate=RATE):
    """Notes of random pitch, strength and length over noise that comes and goes."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    wave = (
        0.02 * rng.standard_normal(len(time)) * (1 + np.sin(2 * np.pi * rng.uniform(1, 3) * time))
    )
    for begin in np.arange(0, seconds, 0.11):
        first = round(begin * rate)
        t = time[: min(round(0.8 * rate), len(time) - first)]
        pitch, decay = rng.uniform(100, 2500), rng.uniform(3, 15)
        for harmonic in (1, 2, 3):
            level = rng.uniform(0.02, 0.15) / harmonic
            tone = np.sin(2 * np.pi * harmonic * pitch * t) * (harmonic * pitch < 7500)
            wave[first : first + len(t)] += level * np.exp(-decay * t) * tone
    return wave.astype(np.float32)


def coded(wave, rate, file_format, subtype):
    """A lossy copy at another sample rate, back at the front end's."""
    file = io.BytesIO()
    up = soxr.resample(wave, RATE, rate)
    soundfile.write(file, up, rate, format=file_format, subtype=subtype)
    decoded, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")
    return soxr.resample(decoded, rate, RATE)[: len(wave)]
