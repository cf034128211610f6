"""CPU milliseconds per clip in the data stages and in other tools, best of several repeats.

All tools get the same clips of ten seconds, in turn, in one process and one thread.
"""

import io
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import librosa
import numpy as np
import soundfile
import torch
import torchaudio

from benchmarks.media import FORMATS, cpu_s, encode
from pipeline import audio
from pipeline.config import load_config
from pipeline.corpus import logmel, resample
from pipeline.corpus.clips import ledger
from pipeline.features.front_end import LogMel
from pipeline.parallel.processes import keep_freed_memory

CLIPS = 16
REPEATS = 3
CONFIG = load_config()
ROW = ledger.Row(row=0, clip_id="x_0", recording_id="x", start_s=0.0, end_s=10.0, labels="")


def cost_ms(work: Callable[[Any], Any], inputs: list[Any]) -> float:
    """Return the CPU milliseconds per input, the best of several repeats."""
    best = float("inf")
    for _ in range(REPEATS):
        started = cpu_s()
        for value in inputs:
            work(value)
        best = min(best, (cpu_s() - started) / len(inputs) * 1000)
    return round(best, 2)


def compare(clip: Callable[[int], bytes]) -> Iterator[dict[str, Any]]:
    """Yield one line for each tool and format."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the stages do
    originals = [clip(number) for number in range(CLIPS)]
    yield from resamplers(originals)
    waves = [prepared(content) for content in originals]
    yield from front_ends(waves)


def prepared(content: bytes) -> bytes:
    """Return a clip as the stage `resample` leaves it."""
    wave, _ = resample.prepare(content, ROW, CONFIG.resample, CONFIG.logmel.sample_rate)
    return audio.encode_flac(wave, CONFIG.logmel.sample_rate)


def resamplers(originals: list[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the cost of converting a clip to 16 kHz mono FLAC, by format."""
    for name in FORMATS:
        clips = [encode(content, name) for content in originals]
        yield {"resample": name, "stage_ms": cost_ms(prepared, clips),
               "decode_ms": cost_ms(audio.decode, clips),
               "ffmpeg_process_ms": cost_ms(ffmpeg_to_16_khz, clips)}  # fmt: skip


def ffmpeg_to_16_khz(content: bytes) -> None:
    """Convert a clip in a process of its own, with soxr as the resampler."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out.flac")
        source.write_bytes(content)
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1", "-i", source]
        command += ["-ac", "1", "-af", "aresample=16000:resampler=soxr", target]
        subprocess.run(command, check=True)


def front_ends(clips: list[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the cost of a clip's log-mel, without and with reading the clip."""
    params = CONFIG.logmel
    front_end = LogMel(params)
    waves = [soundfile.read(io.BytesIO(content), dtype="float32")[0] for content in clips]
    transform = torchaudio.transforms.MelSpectrogram(
        params.sample_rate, params.n_fft, params.win_length, params.hop_length, params.f_min,
        params.f_max, n_mels=params.n_mels, power=2.0,
    )  # fmt: skip

    def with_torchaudio(wave: np.ndarray) -> Any:
        with torch.inference_mode():
            return (transform(torch.from_numpy(wave)) + torch.finfo().eps).log()

    def with_librosa(wave: np.ndarray) -> Any:
        mel = librosa.feature.melspectrogram(
            y=wave, sr=params.sample_rate, n_fft=params.n_fft, hop_length=params.hop_length,
            n_mels=params.n_mels, fmin=params.f_min, fmax=params.f_max, htk=True, norm=None,
        )  # fmt: skip
        return np.log(mel + np.finfo(np.float32).eps)

    def with_stage(wave: np.ndarray) -> Any:
        with torch.inference_mode():
            return front_end(torch.from_numpy(wave))

    read = partial(logmel.transform, row=ROW, front_end=front_end)
    yield {"log_mel": "from a waveform", "stage_ms": cost_ms(with_stage, waves),
           "torchaudio_ms": cost_ms(with_torchaudio, waves),
           "librosa_ms": cost_ms(with_librosa, waves)}  # fmt: skip
    yield {"log_mel": "from FLAC to float16 with statistics", "stage_ms": cost_ms(read, clips)}
