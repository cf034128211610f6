"""The duration of a recording without decoding it, and cutting it into consecutive clips."""

import io
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import soundfile

from pipeline import audio
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.cutting import MIN_CLIP_S, Media, cut
from pipeline.corpus.fetch.failures import UnavailableError, check_machine

CUT_TIMEOUT_S = 60.0  # for FFmpeg


def duration_s(recording: Path | bytes) -> float | None:
    """Return the duration of an audio file, None if only decoding can tell.

    Of a truncated WAV, AIFF or AU file, it is the original duration.

    Raises:
        UnavailableError: it is empty, or not audio.
    """
    size = len(recording) if isinstance(recording, bytes) else recording.stat().st_size
    if not size:
        raise UnavailableError("corrupt", "the file is empty")
    try:
        info = soundfile.info(_readable(recording))
    except soundfile.LibsndfileError:
        return _duration_of_packets(recording)
    with _opened(recording) as file:
        if info.frames == audio.UNKNOWN_LENGTH or audio.is_estimated(file, info.format):
            return _duration_of_packets(recording)
    return float(info.duration) * audio.declared_share(info.extra_info)


def _opened(recording: Path | bytes) -> io.BufferedIOBase:
    return io.BytesIO(recording) if isinstance(recording, bytes) else recording.open("rb")


def _readable(recording: Path | bytes) -> io.BytesIO | str:
    return io.BytesIO(recording) if isinstance(recording, bytes) else str(recording)


def _duration_of_packets(recording: Path | bytes) -> float | None:
    """Return the sum of the packets' durations, as headers of some formats omit or estimate it."""
    try:
        with av.open(_readable(recording), mode="r") as container:
            if not container.streams.audio:
                raise UnavailableError("no_audio", "it has no audio track")
            packets = container.demux(container.streams.audio[0])
            return float(sum((p.duration or 0) * (p.time_base or 0) for p in packets)) or None
    except (av.FFmpegError, ValueError, OverflowError) as error:
        check_machine(error)
        message = getattr(error, "strerror", None) or str(error)
        raise UnavailableError("corrupt", f"it is not audio, or damaged: {message}") from error


def spans(length_s: float, max_s: float) -> list[tuple[float, float]]:
    """Return (start, end) of consecutive clips of `max_s`; the last absorbs a rest too short."""
    count = max(1, int((length_s - MIN_CLIP_S) // max_s) + 1)
    starts = [i * max_s for i in range(count)]
    return list(zip(starts, [*starts[1:], length_s], strict=True))


def pieces(path: Path, segments: Sequence[Segment]) -> Iterator[bytes | UnavailableError]:
    """Yield segments of a recording as 16-bit FLAC with its own rate and channels."""
    try:
        sound = _seekable(path)
    except soundfile.LibsndfileError:
        yield from (_piece_by_ffmpeg(path, segment) for segment in segments)
        return
    except audio.BadAudioError as error:
        yield from (UnavailableError(error.kind, error.reason) for _ in segments)
        return
    with sound:
        yield from (_piece(sound, segment) for segment in segments)


def _seekable(path: Path) -> soundfile.SoundFile:
    """Open a recording; an MP3 of unknown length, in which seeking is inexact, as FLAC."""
    sound = soundfile.SoundFile(path)
    with path.open("rb") as file:
        if not audio.is_estimated(file, sound.format):
            return sound
    sound.close()
    return soundfile.SoundFile(io.BytesIO(audio.encode_flac(*audio.decode(path.read_bytes()))))


def _piece(sound: soundfile.SoundFile, segment: Segment) -> bytes | UnavailableError:
    start, end = (round(t * sound.samplerate) for t in (segment.start_s, segment.end_s))
    try:
        wave = audio.read_span(sound, start, end - start)
    except soundfile.LibsndfileError as error:
        return UnavailableError("corrupt", f"it is damaged or truncated: {error.error_string}")
    if len(wave) < end - start - MIN_CLIP_S * sound.samplerate:
        reason = f"it is truncated: {len(wave)} of {end - start} samples can be decoded"
        return UnavailableError("corrupt", reason)
    if not np.isfinite(wave).all():
        return UnavailableError("corrupt", "it has samples that are not finite")
    return audio.encode_flac(wave, sound.samplerate)


def _piece_by_ffmpeg(path: Path, segment: Segment) -> bytes | UnavailableError:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "clip.flac")
        try:
            media = Media(path.absolute().as_uri(), {})
            cut(media, segment, target, CUT_TIMEOUT_S, threading.Event())
        except UnavailableError as error:
            return error
        return target.read_bytes()
