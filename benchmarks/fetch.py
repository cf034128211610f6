"""The cost of fetching a clip: yt-dlp and FFmpeg with a web site on the loopback interface.

    python -m benchmarks.fetch                           # 256 clips with 8 threads
    python -m benchmarks.fetch --threads 64 --look-up 2  # a site that takes 2 s to find a recording
    python -m benchmarks.fetch --threads 64 --delay 2    # and one that takes 2 s for every answer

Segments of ten seconds are cut from recordings of four minutes in the formats of the site. CPU time
is that of the fetching process and its FFmpeg processes, not of the site. Bytes are those that
FFmpeg requests, without yt-dlp's one request for an unknown address (its body is not read).
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import psutil
import soundfile

from benchmarks.media import RATE, RECORDINGS, ROOT, cpu_s, encode, show
from pipeline.core import params
from pipeline.core.settings import NetworkParams
from pipeline.corpus.clips import ledger
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.fetcher import Fetcher

sys.path.insert(0, str(ROOT / "tests"))
import media_server

SECONDS = 240
REPEATS = 10


def make_recordings(folder: Path, kind: str, count: int) -> None:
    """Write one recording, made of the sample's recordings end to end, under many names."""
    files = [soundfile.read(path, dtype="int16")[0] for path in RECORDINGS[:16]]
    wave = np.resize(np.concatenate(files), (SECONDS * RATE, 2))
    original = folder / f"recording.{kind}"
    soundfile.write(folder / "recording.wav", wave, RATE)
    original.write_bytes(encode((folder / "recording.wav").read_bytes(), kind))
    for number in range(count):
        os.link(original, folder / f"ok-{number:05d}.wav")


def serve(folder: Path, delay_s: float, look_up_s: float, pipe: Connection) -> None:
    """Run the site; send its URL template, and at the end the numbers of requests and bytes."""
    with media_server.serve(folder) as site:
        site.delay_s, site.look_up_s = delay_s, look_up_s
        pipe.send(site.template)
        pipe.recv()
        ranges = [headers["Range"] for headers in site.headers if "Range" in headers]
        size = (folder / "ok-00000.wav").stat().st_size
        pipe.send((len(site.headers), sum(requested_bytes(header, size) for header in ranges)))


def requested_bytes(header: str, size: int) -> int:
    """Return how many bytes of a file a Range header requests."""
    first, last = map(int, header.removeprefix("bytes=").split("-"))
    return min(last + 1, size) - first


def measure(folder: Path, template: str, options: argparse.Namespace) -> None:
    """Fetch all clips and print what it cost."""
    network = params.load("network", NetworkParams).model_copy(update={"clips_per_hour": 0.0})
    rng = np.random.default_rng(0)
    segments = [
        Segment(
            row=i, recording_id=f"ok-{i:05d}", start_s=float(start), end_s=start + 10.0, labels=""
        )
        for i, start in enumerate(rng.integers(0, SECONDS - 10, options.clips))
    ]
    fetcher = Fetcher(template, ClipStore(folder / "store"), folder / "partial", network)
    used, started = cpu_s(), time.perf_counter()
    rows = fetcher.run(segments, options.threads)
    lost = [row.reason for row in rows if row.status != ledger.OK]
    wall, used = time.perf_counter() - started, cpu_s() - used
    show(
        {
            "threads": options.threads,
            "delay_s": options.delay,
            "look_up_s": options.look_up,
            "ok": len(rows) - len(lost),
            "lost": lost[:1],
            "ten_seconds": sum(row.duration_s == 10.0 for row in rows),
            "clips_per_s": round(options.clips / wall, 1),
            "cpu_ms_per_clip": round(1000 * used / options.clips, 1),
            "rss_mib": psutil.Process().memory_info().rss >> 20,
        }
    )


def plain_cut_ms(recording: Path) -> float:
    """Return the CPU of FFmpeg alone for a segment of a file as 16 kHz mono, as a lower bound."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", "-ss", "100"]
    command += ["-i", recording, "-t", "10", "-ac", "1", "-ar", "16000"]
    costs = []
    for _ in range(REPEATS):
        started = cpu_s()
        subprocess.run([*command, recording.with_name("plain.flac")], check=True)
        costs.append(cpu_s() - started)
    return round(1000 * min(costs), 1)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--look-up", type=float, default=0.0, help="seconds, once per clip")
    parser.add_argument("--kinds", default="m4a,opus")
    options = parser.parse_args()
    for kind in options.kinds.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_recordings(folder, kind, options.clips)
            pipe, end = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")
            site = context.Process(target=serve, args=(folder, options.delay, options.look_up, end))
            site.start()
            worker = context.Process(target=measure, args=(folder, pipe.recv(), options))
            worker.start()  # a new process, to measure its memory
            worker.join()
            show({"kind": kind, "plain_cut_ms": plain_cut_ms(folder / "ok-00000.wav")})
            pipe.send("end")
            requests, ranges = pipe.recv()
            site.join()
        show({"kind": kind, "requests_per_clip": round(requests / options.clips, 1),
              "mb_asked_by_ffmpeg": round(ranges / options.clips / 1e6, 2)})  # fmt: skip


if __name__ == "__main__":
    main()
