"""The cache of embeddings returns what was stored, for the same audio and model only."""

import io

import numpy as np
import pytest

from pipeline.hear.embed.cache import EmbeddingCache, model_digest

RNG = np.random.default_rng(0)
WAVE = RNG.standard_normal(1600).astype(np.float32)
SCENE = RNG.standard_normal((1, 8)).astype(np.float32)
EVENTS = RNG.standard_normal((5, 8)).astype(np.float32)
TIMES = np.arange(5) * 50.0


def opened(tmp_path, name="model", max_bytes=1 << 30):
    return EmbeddingCache(tmp_path / "cache", name, max_bytes)


@pytest.mark.parametrize(("embeddings", "times"), [(SCENE, None), (EVENTS, TIMES)])
def test_processes_share_the_cache(tmp_path, embeddings, times):
    first = opened(tmp_path)
    first.put(WAVE, embeddings, times)
    first.close()
    found, found_times = opened(tmp_path).get(WAVE)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, embeddings)
    assert (found_times is None) == (times is None)
    np.testing.assert_array_equal(found_times, times)


def test_other_audio_and_other_models_miss_the_cache(tmp_path):
    opened(tmp_path).put(WAVE, SCENE)
    other = WAVE.copy()
    other[-1] = np.nextafter(other[-1], np.float32(9))  # one bit
    assert opened(tmp_path).get(other) is None
    assert opened(tmp_path).get(WAVE[:-1]) is None
    assert opened(tmp_path, "other").get(WAVE) is None
    assert opened(tmp_path).get(WAVE.copy()) is not None


def test_the_digest_changes_with_every_file_and_setting_and_with_nothing_else(tmp_path):
    files = [tmp_path / name for name in ("encoder.safetensors", "encoder.json")]
    for file in files:
        file.write_text(file.name)
    settings = {"window_ms": 950.0, "kind": "scene"}
    before = model_digest(files, settings)
    assert model_digest(files, dict(reversed(settings.items()))) == before
    assert model_digest(files, settings | {"window_ms": 500.0}) != before
    files[1].write_text("{}")
    assert model_digest(files, settings) != before


def test_the_oldest_are_evicted(tmp_path):
    cache = opened(tmp_path, max_bytes=1 << 20)
    waves = [np.full(4, i, np.float32) for i in range(40)]
    for wave in waves:
        cache.put(wave, np.zeros((1, 1 << 14), np.float32))  # 64 KiB
    found = [cache.get(wave) is not None for wave in waves]
    assert found[-1] and not found[0]
    assert sum(found) < 20


def test_a_truncated_entry_counts_as_missing(tmp_path, monkeypatch):
    cache = opened(tmp_path)
    cache.put(WAVE, SCENE)
    content = cache._cache[cache._key(WAVE)]
    for size in (0, 10, len(content) // 2, len(content) - 1):
        cache._cache[cache._key(WAVE)] = content[:size]
        assert cache.get(WAVE) is None


def test_pickled_entries_are_not_read(tmp_path):
    cache = opened(tmp_path)
    cache.put(WAVE, SCENE)
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    cache._cache[cache._key(WAVE)] = file.getvalue()
    assert cache.get(WAVE) is None
