"""CPU time per clip of the data stages, measured on synthetic clips."""

import io
import resource
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float32

from pipeline import audio
from pipeline.config import Config
from pipeline.corpus import logmel, resample
from pipeline.corpus.clips.ledger import Row
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.cutting import Media, cut
from pipeline.features.front_end import LogMel

CLIPS = 3  # measured, after one to warm up
DURATION_S = 10
RATE = 48_000  # Hz, stereo
ROW = Row(row=0, clip_id="x_0", recording_id="x", start_s=0.0, end_s=10.0, labels="")


def cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a function, including those of its child processes."""

    def used() -> float:
        both = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    work()
    before = used()
    for _ in range(CLIPS):
        work()
    return (used() - before) / CLIPS


def measure(config: Config) -> dict[str, float]:
    """Return the CPU seconds that each data stage takes for a clip of ten seconds.

    For `download`, it is a cut from a file.
    """
    torch.set_num_threads(1)  # as in the stages
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, DURATION_S * RATE + 63))
    wave = np.stack([np.convolve(n, np.hanning(64), "valid") for n in noise], axis=1)
    wave = (0.5 * wave / np.abs(wave).max()).astype(np.float32)
    fetched = io.BytesIO()
    soundfile.write(fetched, wave, RATE, format="FLAC")
    rate = config.logmel.sample_rate
    front_end = LogMel(config.logmel)

    def resampled() -> bytes:
        mono, _ = resample.prepare(fetched.getvalue(), ROW, config.resample, rate)
        return audio.encode_flac(mono, rate)

    content = resampled()
    return {
        "download": cut_s(wave, config.network.timeout_s),
        "resample": cpu_s(resampled),
        "logmel": cpu_s(lambda: logmel.transform(content, ROW, front_end)),
    }


def cut_s(wave: Float32[np.ndarray, "S C"], timeout_s: float) -> float:
    """Return the CPU seconds of cutting a clip from a file."""
    with tempfile.TemporaryDirectory() as folder:
        recording, clip = Path(folder, "x.wav"), Path(folder, "x.flac")
        soundfile.write(recording, wave, RATE)
        media, stop = Media(recording.as_uri(), {}), threading.Event()
        segment = Segment(0, "x", 0.0, float(DURATION_S), "")
        return cpu_s(lambda: cut(media, segment, clip, timeout_s, stop))
