"""Shared by the benchmarks: clips made of the sample's recordings, and CPU time."""

import io
import json
import resource
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import soundfile
import soxr

ROOT = Path(__file__).parents[1]
RECORDINGS = sorted((ROOT / "data/sample/videos").glob("*.ogg"))
CLIP_S = 10
RATE = 48_000  # Hz, of the clips
FRAGMENTS = ["-movflags", "dash+global_sidx", "-frag_duration", "5000000"]
FORMATS = {  # FFmpeg's options
    "flac": ["-c:a", "flac", "-f", "flac"],
    "m4a": ["-c:a", "aac", "-b:a", "128k", *FRAGMENTS, "-f", "mp4"],
    "opus": ["-c:a", "libopus", "-b:a", "96k", "-f", "webm"],
    "ogg": ["-c:a", "libvorbis", "-f", "ogg"],
    "mp3": ["-c:a", "libmp3lame", "-f", "mp3"],
}


@cache
def recordings() -> list[tuple[np.ndarray, int]]:
    """Return the recordings of the sample that are long enough, decoded."""
    files = [soundfile.read(path, dtype="float32") for path in RECORDINGS]
    return [(wave, rate) for wave, rate in files if len(wave) > CLIP_S * rate]


@cache
def clip(number: int) -> bytes:
    """Return a clip: two excerpts of recordings at random levels and stereo positions."""
    rng = np.random.default_rng([0, number])
    stereo = np.zeros((CLIP_S * RATE, 2), np.float32)
    for index in rng.choice(len(recordings()), 2, replace=False):
        wave, rate = recordings()[index]
        start = rng.integers(len(wave) - CLIP_S * rate)
        mono = soxr.resample(wave[start : start + CLIP_S * rate], rate, RATE)
        gains = rng.uniform(0.2, 0.6, 2).astype(np.float32)
        stereo += mono[: len(stereo), None] * gains
    file = io.BytesIO()
    soundfile.write(file, np.clip(stereo, -1, 1), RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def encode(content: bytes, kind: str) -> bytes:
    """Return audio in another format, encoded to a file as the index needs seeking."""
    with tempfile.TemporaryDirectory() as folder:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", "pipe:0", *FORMATS[kind]]
        subprocess.run([*command, f"{folder}/out"], input=content, check=True)
        return Path(folder, "out").read_bytes()


def cpu_s() -> float:
    """Return the CPU seconds of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def show(values: dict[str, Any]) -> None:
    """Print values as a line of JSON."""
    print(json.dumps(values), flush=True)  # noqa: T201
