"""Cut a segment out of a recording with FFmpeg, exact to the sample.

FFmpeg reads only what the segment needs, and writes FLAC with the recording's own rate and
channels. A recording with a gap inside the segment counts as corrupt: audio after a gap would get
the label of an earlier time.
"""

import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import imageio_ffmpeg
import soundfile

from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch import failures
from pipeline.corpus.fetch.failures import UnavailableError

MIN_CLIP_S = 0.1  # seconds; less is not a clip
SEEK_MARGIN_S = 1.0  # decoded before the segment, so that the decoder has settled at its start
EMPTY_FLAC = (1 << 63) - 1  # libsndfile's number of frames of a FLAC file without samples
PATIENCE = 10  # times timeout_s that one cut may take while data keep arriving
POLL_S = 0.5  # how soon a cut under way notices that the stage ends
GAP_S = 0.1  # time stamps further off than this are a gap; Vorbis's are off by up to 0.05 s
REQUEST_BYTES = "262144"  # of one range; YouTube throttles readers of one long range
BLOCK = 4096  # samples; by default FFmpeg uses the size of the first frame, which may be tiny
STAMPED = 1024  # samples for each time stamp that is checked


@dataclass(frozen=True)
class Media:
    """Where and how FFmpeg reads a recording."""

    url: str
    headers: dict[str, str]
    proxy: str = ""


def local_path(url: str) -> Path | None:
    """Return the path of a file:// URL, None for any other."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def cut(
    media: Media, segment: Segment, target: Path, timeout_s: float, stop: threading.Event
) -> float:
    """Write the segment of a recording as FLAC and return its duration in seconds.

    Raises:
        UnavailableError: the recording cannot be read, holds no audio, or is damaged; or `stop`
            was set meanwhile.
        OSError: there is no space left on this machine, or no FFmpeg.
    """
    command = cut_command(media, segment, target, timeout_s)
    code, stamps, errors = run_ffmpeg(command, PATIENCE * timeout_s, stop)
    if code:
        raise failures.classify_cutting(errors)
    frames, rate = measure(target)
    gap = gap_s(stamps, rate, segment.start_s)
    if gap is not None and gap < frames / rate:
        reason = f"the recording has a gap at {segment.start_s + gap:.3f} s"
        raise UnavailableError("corrupt", reason)
    failures.check_damage(errors)
    return frames / rate


def cut_command(media: Media, segment: Segment, target: Path, timeout_s: float) -> list[str]:
    """Return the FFmpeg command that writes exactly [start, end) of a recording.

    The first sample is chosen by its time stamp, after a coarse seek (which alone would land on the
    last second of an Ogg file if the segment lies beyond its end). From there samples are counted,
    since time stamps of compressed audio may be off by some milliseconds from packet to packet.
    The time stamps of the counted samples are printed to standard output (see `gap_s`).
    """
    seek_s = segment.start_s - SEEK_MARGIN_S
    seek = ["-ss", f"{seek_s:.6f}"] if seek_s > 0 else []  # "-ss 0" would drop 21 ms of an m4a
    filters = [
        f"atrim=start={segment.start_s:.6f}",
        f"asetnsamples={STAMPED}:pad=0",
        *("ametadata=add:key=-:value=-", "ametadata=print:file=-"),  # prints frames with metadata
        *("asetpts=round(N/SR/TB)", f"atrim=end={segment.duration_s:.6f}"),
    ]
    return [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", "-xerror"),
        *("-copyts", "-start_at_zero", *seek, *_input(media, timeout_s)),
        *("-map", "0:a:0", "-map_metadata", "-1", "-threads", "1"),
        *("-af", ",".join(filters)),
        *("-c:a", "flac", "-sample_fmt", "s16", "-frame_size", str(BLOCK)),
        *("-fflags", "+bitexact", "-flags:a", "+bitexact", "-f", "flac", str(target)),
    ]


def _input(media: Media, timeout_s: float) -> list[str]:
    """Return FFmpeg's options of where and how to read a recording."""
    path = local_path(media.url)
    if path is not None:
        return ["-i", f"file:{path}"]
    headers = "".join(f"{name}: {value}\r\n" for name, value in media.headers.items())
    return [
        *("-rw_timeout", f"{timeout_s * 1e6:.0f}", "-headers", headers),
        *("-request_size", REQUEST_BYTES),
        *(["-http_proxy", media.proxy] if media.proxy else []),
        *("-i", media.url),
    ]


def run_ffmpeg(command: list[str], limit_s: float, stop: threading.Event) -> tuple[int, str, str]:
    """Return FFmpeg's exit code, standard output and standard error.

    Raises:
        UnavailableError: it took longer than `limit_s`, or `stop` was set; FFmpeg was killed.
    """
    deadline = time.monotonic() + limit_s
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,  # Ctrl-C reaches the stage alone, which then kills FFmpeg
    ) as process:
        while True:
            try:
                output, errors = process.communicate(timeout=POLL_S)
                return process.returncode, output, errors
            except subprocess.TimeoutExpired:
                if not stop.is_set() and time.monotonic() < deadline:
                    continue
                process.kill()
            why = "interrupted" if stop.is_set() else f"no complete clip within {limit_s:.0f} s"
            raise UnavailableError("transient", why)


def gap_s(stamps: str, rate: int, start_s: float) -> float | None:
    """Return how many seconds after `start_s` audio has its first gap, None if it has none.

    Among other lines, `stamps` has "frame:0 pts:480000 pts_time:10" for each `STAMPED` samples.
    """
    for number, stamp in re.findall(r"^frame:(\d+) .*pts_time:([-.\d]+)", stamps, re.MULTILINE):
        after_s = int(number) * STAMPED / rate
        if abs(float(stamp) - start_s - after_s) > GAP_S:
            return after_s
    return None


def measure(clip: Path) -> tuple[int, int]:
    """Return the samples and the sample rate of a clip; FFmpeg may leave a file without samples."""
    try:
        info = soundfile.info(clip)
    except soundfile.LibsndfileError:
        return 0, 1
    return (0 if info.frames == EMPTY_FLAC else info.frames), info.samplerate
