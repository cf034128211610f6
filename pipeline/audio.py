"""Waveforms: decode, mix down, resample, encode.

A waveform is float32 in [-1, 1], `[S, C]` with channels and `[S]` without. Resampling is soxr HQ
everywhere: its pass band is flat to within 0.1 dB up to 7 kHz at 16 kHz, and nothing aliases.
"""

import io
import re
from collections.abc import Iterator

import av
import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32, Int16

BLOCK = 1 << 20  # samples to decode at a time, so that a false header cannot claim all memory
FULL_SCALE = 1 << 15  # of 16-bit samples
PLANAR = "fltp"  # FFmpeg's name for float32 with one array per channel, what most decoders return
NEARLY_FULL = (
    0.999  # 0.009 dB under full scale: the level of a clipped sample, also after compression
)
UNKNOWN_LENGTH = (1 << 63) - 1  # libsndfile's number of frames of a streamed FLAC
PREROLL_S = 0.2  # seconds of an MP3 to decode before a position: its frames depend on earlier ones
SHORTER = re.compile(r"(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)")  # libsndfile's log
PADDING = 1024  # bytes by which a header may be wrong
STREAMED = 0x7FFFF000  # declared sizes from here on mean "unknown"


class BadAudioError(Exception):
    """Audio that cannot be used: `kind` is its status in the ledger, the message says why."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


def decode(content: bytes) -> tuple[Float32[np.ndarray, "S C"], int]:
    """Return the waveform and the sample rate of an audio file of any common format.

    libsndfile reads it where it can, FFmpeg (PyAV) the rest, m4a for example.

    Raises:
        BadAudioError: the file is empty, no audio, damaged or truncated.
    """
    if not content:
        raise BadAudioError("corrupt", "the file is empty")
    wave, rate = _decode_with_libsndfile(content) or _decode_with_ffmpeg(content)
    if not np.isfinite(wave).all():
        raise BadAudioError("corrupt", "it has samples that are not finite")
    return wave, rate


def _decode_with_libsndfile(content: bytes) -> tuple[Float32[np.ndarray, "S C"], int] | None:
    """Return the waveform and its rate, None if libsndfile cannot tell the format or length."""
    try:
        sound = soundfile.SoundFile(io.BytesIO(content))
    except soundfile.LibsndfileError:
        return None
    with sound:
        if sound.frames == UNKNOWN_LENGTH or is_estimated(io.BytesIO(content), sound.format):
            return None
        try:
            first, *others = _blocks(sound)
            wave = np.concatenate([first, *others]) if others else first
        except soundfile.LibsndfileError as error:
            reason = f"it is damaged or truncated: {error.error_string}"
            raise BadAudioError("corrupt", reason) from error
        if (declared := declared_share(sound.extra_info)) > 1:
            raise BadAudioError("corrupt", f"it is truncated: {1 / declared:.1%} of it is there")
        if len(wave) < sound.frames:
            reason = f"it is truncated: {len(wave)} of {sound.frames} samples can be decoded"
            raise BadAudioError("corrupt", reason)
        return wave, sound.samplerate


def is_estimated(file: io.BufferedIOBase, file_format: str) -> bool:
    """Return whether libsndfile guesses the length: that of an MP3 whose first frame lacks it."""
    if file_format != "MP3":
        return False
    head = file.read(10)
    if head.startswith(b"ID3"):  # a tag, whose size is in four times seven bits
        file.seek(10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(head[6:10])))
        head = b""
    first = head + file.read(200)
    return not any(name in first for name in (b"Xing", b"Info", b"VBRI"))


def declared_share(log: str) -> float:
    """Return the declared length of a WAV, AIFF or AU file divided by its real length.

    libsndfile reads what is there; only its log (`extra_info`) mentions that more was declared.
    """
    found = SHORTER.search(log)
    declared, present = map(int, found.groups()) if found else (0, 0)
    is_shorter = declared - present > PADDING and declared < STREAMED
    return declared / max(present, 1) if is_shorter else 1.0


def read_span(sound: soundfile.SoundFile, start: int, count: int) -> Float32[np.ndarray, "S C"]:
    """Return samples [start, start + count) of a seekable file, or fewer at its end.

    Raises:
        LibsndfileError: they cannot be read.
    """
    before = min(start, round(PREROLL_S * sound.samplerate)) if sound.format == "MP3" else 0
    sound.seek(start - before)
    return sound.read(before + count, dtype="float32", always_2d=True)[before:]


def _blocks(sound: soundfile.SoundFile) -> Iterator[Float32[np.ndarray, "S C"]]:
    """Yield at least one block, and none after a short one."""
    start, size = 0, BLOCK
    while size == BLOCK:
        if sound.format == "MP3":  # soundfile seeks after each read, which loses the preroll
            block = read_span(sound, start, BLOCK)
        else:
            block = sound.read(BLOCK, dtype="float32", always_2d=True)
        start, size = start + len(block), len(block)
        yield block


def _decode_with_ffmpeg(content: bytes) -> tuple[Float32[np.ndarray, "S C"], int]:
    blocks: list[np.ndarray] = []
    try:
        with av.open(io.BytesIO(content), mode="r") as container:
            if not container.streams.audio:
                raise BadAudioError("no_audio", "it has no audio track")
            stream = container.streams.audio[0]
            planar = av.AudioResampler(format=PLANAR)
            for frame in container.decode(stream):
                parts = [frame] if frame.format.name == PLANAR else planar.resample(frame)
                blocks += [part.to_ndarray() for part in parts]
            if not blocks:
                raise BadAudioError("corrupt", "it holds no samples")
            return np.concatenate(blocks, axis=1).T, stream.rate
    except (av.FFmpegError, ValueError, OverflowError) as error:
        raise BadAudioError("corrupt", f"it is not audio, or is damaged: {error}") from error


def to_mono(wave: Float32[np.ndarray, "S C"]) -> Float32[np.ndarray, " S"]:
    """Return the mean of the channels."""
    return np.ascontiguousarray(wave.T).mean(axis=0)  # NumPy is slow along an axis of two


def resample(
    wave: Float32[np.ndarray, " S"], rate: int, target_rate: int
) -> Float32[np.ndarray, " S_out"]:
    """Change the sample rate with soxr HQ; the same rate leaves the samples as they are."""
    if rate == target_rate:
        return wave
    return soxr.resample(wave, rate, target_rate, quality="HQ")


def peak_db(wave: Float[np.ndarray, "..."]) -> float:
    """Return the peak level in dB of full scale; minus infinity for digital silence."""
    with np.errstate(divide="ignore"):
        return float(20 * np.log10(np.abs(wave).max(initial=0)))


def clipped(wave: Float[np.ndarray, "..."]) -> float:
    """Return the share of samples at full scale, over all channels."""
    return np.count_nonzero(np.abs(wave) >= NEARLY_FULL) / max(wave.size, 1)


def quantize(wave: Float32[np.ndarray, "*shape"]) -> Int16[np.ndarray, "*shape"]:
    """Return 16-bit samples, clipped to full scale; the inverse of reading them as float."""
    return np.clip(np.rint(wave * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def encode_flac(
    wave: Float32[np.ndarray, "*shape"] | Int16[np.ndarray, "*shape"], rate: int
) -> bytes:
    """Return a 16-bit FLAC file of a waveform [S] or [S, C], quantized or not."""
    file = io.BytesIO()
    samples = wave if wave.dtype == np.int16 else quantize(wave)
    soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()
