"""A cache of embeddings by the content of their audio: what two tasks share is embedded once.

NSynth's and Speech Commands' 5h tasks are parts of their larger ones, and Mridangam's stroke and
tonic have the same audio. An entry belongs to one waveform and one model digest, which covers all
else that an embedding depends on. The cache is not a result and may be removed at any time.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diskcache
import numpy as np
from jaxtyping import Float, Float32

from pipeline.core.code_identity import code_identity
from pipeline.core.files import sha256
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import work_root

SHARED = ("nsynth_pitch", "speech_commands", "mridangam_stroke", "mridangam_tonic")
LIBRARIES = ("torch", "torchaudio")  # whose versions count as code
CHECKPOINT = ("encoder.json", "encoder.safetensors", "model.json")  # where they exist
Embedded = tuple[Float32[np.ndarray, "N D"], Float[np.ndarray, " N"] | None]


def model_digest(files: Iterable[Path], settings: Mapping[str, Any]) -> str:
    """Return a digest of what embeddings depend on besides the audio.

    Args:
        files: those of the checkpoint, in an order that does not change.
        settings: everything else as plain values, including device and code.
    """
    digests = [sha256(path) for path in files]
    text = json.dumps([digests, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def shares_audio(task: str) -> bool:
    """Return whether a task shares audio with another task of HEAR."""
    return task.startswith(SHARED)


def open_cache(
    folder: Path, settings: Mapping[str, Any], compute: ComputeParams
) -> "EmbeddingCache":
    """Return the cache for a model's folder, of at most `compute.embedding_cache_gb`."""
    files = [folder / name for name in CHECKPOINT if (folder / name).exists()]
    code = code_identity("pipeline.hear.models.registry", LIBRARIES)
    digest = model_digest(files, {**settings, "device": compute.device, "code": code})
    size = round(compute.embedding_cache_gb * 1e9)
    return EmbeddingCache(work_root() / "embeddings-cache", digest, size)


class EmbeddingCache:
    """Embeddings in a folder that several processes may use; the oldest are evicted."""

    def __init__(self, folder: Path, model: str, max_bytes: int) -> None:
        self._model = model
        self._cache = diskcache.Cache(
            str(folder), size_limit=max_bytes, eviction_policy="least-recently-used"
        )

    def get(self, wave: Float32[np.ndarray, " S"]) -> Embedded | None:
        """Return the embeddings of a clip and any timestamps in ms; None if not cached."""
        content = self._cache.get(self._key(wave))
        if content is None:
            return None
        file = io.BytesIO(content)
        try:
            embeddings, timestamps = np.load(file), np.load(file)
        except (EOFError, ValueError):  # truncated by a crash
            return None
        return embeddings, timestamps if len(timestamps) else None

    def put(
        self,
        wave: Float32[np.ndarray, " S"],
        embeddings: Float32[np.ndarray, "N D"],
        timestamps: Float[np.ndarray, " N"] | None = None,
    ) -> None:
        """Keep the embeddings of a clip."""
        file = io.BytesIO()
        np.save(file, embeddings)
        np.save(file, np.empty(0) if timestamps is None else timestamps)
        self._cache.set(self._key(wave), file.getvalue())

    def close(self) -> None:
        """Close its files."""
        self._cache.close()

    def _key(self, wave: Float32[np.ndarray, " S"]) -> str:
        return f"{self._model} {hashlib.sha256(wave.tobytes()).hexdigest()}"
