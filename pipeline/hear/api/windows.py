"""Windows of timestamp embeddings (950 ms every 50 ms in the paper), in hops of the STFT.

A timestamp's window is a slice of the clip's one STFT, so window and hop must be whole hops of it.
"""

from pipeline.features.params import LogMelParams

MIN_FRAMES = 4  # that an encoder takes


def min_samples(log_mel: LogMelParams) -> int:
    """Return the fewest samples that give an encoder its frames, with reflected edges."""
    return max(log_mel.n_fft // 2 + 1, (MIN_FRAMES - 1) * log_mel.hop_length)


def window_hops(window_ms: float, log_mel: LogMelParams) -> int:
    """Return the length of a window in hops of the STFT.

    Raises:
        ValueError: it is not a whole number of hops, or too short for an encoder.
    """
    hops = duration_hops("window_ms", window_ms, log_mel)
    if hops * log_mel.hop_length < min_samples(log_mel):
        raise ValueError(
            f"hear.window_ms = {window_ms} ms is shorter than the {min_samples(log_mel)} samples "
            f"that the encoder needs at {log_mel.sample_rate} Hz. Lengthen it."
        )
    return hops


def duration_hops(key: str, duration_ms: float, log_mel: LogMelParams) -> int:
    """Return the duration at `hear.<key>` in hops of the STFT.

    Raises:
        ValueError: it is not a whole number of hops.
    """
    hops = duration_ms * log_mel.sample_rate / 1000 / log_mel.hop_length
    if hops < 1 or abs(hops - round(hops)) > 1e-6:
        step = 1000 * log_mel.hop_length / log_mel.sample_rate
        raise ValueError(
            f"hear.{key} = {duration_ms} ms is {hops:g} hops of the front end, which must be a "
            f"whole number from 1 up: take a multiple of {step:g} ms."
        )
    return round(hops)
