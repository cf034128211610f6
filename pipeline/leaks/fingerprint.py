"""Audio fingerprints of log-mel spectrograms, which identify copies of a recording.

After Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002): 32 bits per
frame. Each is the sign of the change over time of the energy difference of two neighboring bands.
Gain, lossy coding and cutting hardly affect them. Here each bit depends on `SPAN` frames: energies
are averaged over `SMOOTH` frames, and changes are measured over `LAG` frames. Frames of silence or
of a constant sound have the value `UNINFORMATIVE`.

Layout of a shard of fingerprints, with the same clips as the shard of log-mels:

    /fingerprint  uint32 [total]       every `STRIDE`th frame of the clips, concatenated
    /start        int64  [clips + 1]   clip i is fingerprint[start[i]:start[i + 1]]
    /clip_id      utf-8  [clips]
    attribute     logmel               front end, as in the shard of log-mels
"""

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float, Int64, UInt32

from pipeline.core.params import check
from pipeline.core.shard_folder import rebuild_hint
from pipeline.features import hdf5_shards
from pipeline.features.params import LogMelParams

STAGE = "fingerprint"
SUFFIX = ".h5"
BITS = 32
MELS_PER_BAND = 4  # mel bins; the bands overlap
SMOOTH = 16  # frames, a power of 2
LAG = 16  # frames
SPAN = SMOOTH + LAG  # frames
STRIDE = 4  # frames between two fingerprints of a shard; neighbors share most of their frames
LEAST_CHANGE = 0.1  # nats, root mean square over the bits; a steady tone has about 0.001
UNINFORMATIVE = 0


@dataclass(frozen=True)
class Fingerprints:
    """Content of one shard."""

    values: UInt32[np.ndarray, " total"]
    start: Int64[np.ndarray, " clips_plus_1"]
    clip_id: list[str]
    log_mel: LogMelParams


def fingerprint(log_mel: Float[np.ndarray, "T F"]) -> UInt32[np.ndarray, " N"]:
    """Return the fingerprints of all complete spans, N = max(0, T - SPAN + 1).

    Raises:
        ValueError: there are too few mel bins for the bands.
    """
    frames, n_mels = log_mel.shape
    if n_mels < BITS + MELS_PER_BAND:
        raise ValueError(
            f"logmel.n_mels = {n_mels}: a fingerprint needs {BITS + MELS_PER_BAND} or more."
        )
    if frames < SPAN:
        return np.zeros(0, np.uint32)
    energy = np.exp(log_mel.astype(np.float32))
    for step in (2**i for i in range(MELS_PER_BAND.bit_length() - 1)):
        energy = energy[:, :-step] + energy[:, step:]
    band = np.linspace(0, n_mels - MELS_PER_BAND, BITS + 1).round().astype(int)
    energy = energy.take(band, axis=1)
    for step in (2**i for i in range(SMOOTH.bit_length() - 1)):
        energy = energy[:-step] + energy[step:]
    slope = np.diff(np.log(energy), axis=1)
    change = slope[:-LAG] - slope[LAG:]
    bits = np.packbits(change > 0, axis=1, bitorder="little").view("<u4")[:, 0]
    informative = np.square(change).mean(axis=1) >= LEAST_CHANGE**2
    return np.where(informative, bits, UNINFORMATIVE).astype(np.uint32)


def fingerprint_shard(job: tuple[Path, Path]) -> int:
    """Write the fingerprints of a shard of log-mels; return the number of clips.

    Args:
        job: the shard of log-mels and the file to write.

    Raises:
        ValueError: the shard is damaged.
    """
    source, target = job
    shard = hdf5_shards.read(source)
    clips = zip(shard.start[:-1], shard.start[1:], strict=True)
    values = [fingerprint(shard.frames[first:end])[::STRIDE] for first, end in clips]
    start = np.cumsum([0, *map(len, values)], dtype=np.int64)
    with h5py.File(target, "w", libver="latest") as file:
        file["fingerprint"] = np.concatenate([np.zeros(0, np.uint32), *values])
        file["start"] = start
        file.create_dataset("clip_id", data=shard.clip_id, dtype=h5py.string_dtype())
        file.attrs["logmel"] = shard.log_mel.model_dump_json()
    return len(values)


def read(path: Path) -> Fingerprints:
    """Read a shard.

    Raises:
        ValueError: the file is not a shard of fingerprints, or is damaged.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return Fingerprints(
                values=file["fingerprint"][:],
                start=file["start"][:],
                clip_id=file["clip_id"].asstr()[:].tolist(),
                log_mel=check(json.loads(file.attrs["logmel"]), LogMelParams, "logmel", path),
            )
    except (KeyError, OSError) as error:
        raise ValueError(
            f"{path} is not a shard of fingerprints, or is damaged ({error}). {rebuild_hint(STAGE)}"
        ) from error
