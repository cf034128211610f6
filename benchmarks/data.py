"""Speed, memory and disk of the data stages on real-length clips, and other tools beside them.

    python -m benchmarks.data --clips 20000              # needs about 0.7 MB of disk per clip
    python -m benchmarks.data --clips 0                  # only the comparison, clip by clip

Clips of ten seconds, 48 kHz stereo FLAC as the stage `download` leaves them, are mixed from the
sample's recordings: 512 different ones, which then repeat. The stages run as DVC runs them, each a
process with its workers; CPU seconds are those of all of them, memory is the largest sum over them
at one time.
"""

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from benchmarks import tools
from benchmarks.media import ROOT, clip, show
from pipeline.core import shard_folder
from pipeline.core.settings import cores
from pipeline.corpus.clips import ledger, tar_shards
from pipeline.parallel.processes import map_shards

DIFFERENT = 512  # clips
SHARD = 4096  # rows, as for AudioSet
PAPER_CLIPS = 1_629_756
FORECAST_CORES = 16
EFFICIENCY = 0.85  # of many cores, against the same number of single ones


@dataclass(frozen=True)
class Job:
    """Rows [first, last) of the corpus, to be made as one shard."""

    path: Path
    first: int
    last: int


def make_shard(job: Job) -> list[ledger.Row]:
    """Write a shard of clips and return its rows."""
    rows = []

    def clips() -> Iterator[tuple[str, bytes]]:
        for number in range(job.first, job.last):
            content = clip(number % DIFFERENT)
            digest = hashlib.sha256(content).hexdigest()
            name, size = f"clip{number:07d}", len(content)
            row = ledger.Row(row=number, clip_id=f"{name}_0", recording_id=name,
                             start_s=0.0, end_s=10.0, labels="", bytes=size, sha256=digest,
                             duration_s=10.0)  # fmt: skip
            rows.append(row)
            yield row.clip_id, content

    tar_shards.write(job.path, clips())
    return rows


def make_corpus(folder: Path, clips: int) -> None:
    """Write data/clips as the stage `download` does."""
    folder.mkdir(parents=True)
    firsts = range(0, clips, SHARD)
    jobs = [Job(shard_folder.shard_path(folder, i, ".tar"), first, min(first + SHARD, clips))
            for i, first in enumerate(firsts)]  # fmt: skip
    rows = [row for shard in map_shards(make_shard, jobs, 0, "clips") for row in shard]
    ledger.write(folder / "ledger.csv", rows)
    shard_folder.write(folder, ledger.manifest_of(rows, SHARD))


def write_params(folder: Path) -> None:
    """Write the repository's parameters, with AudioSet's shard size."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["download"]["clips_per_shard"] = SHARD
    yaml.dump(params, folder / "params.yaml")


def run_stage(name: str, folder: Path, clips: int) -> dict[str, Any]:
    """Run a stage and return what it cost."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)}
    command = [sys.executable, "-m", f"stages.{name}"]
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        memory = watch_memory(process.pid, process.poll)
    if process.returncode:
        raise SystemExit(f"{name} failed with exit status {process.returncode}")
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"stage": name, "clips": clips, "clips_per_s": round(clips / wall, 1),
            "cpu_ms_per_clip": round(1000 * cpu / clips, 2), "wall_s": round(wall, 1),
            "clips_per_s_per_core": round(clips / cpu, 1), **memory,
            "forecast_h": round(PAPER_CLIPS * cpu / clips / FORECAST_CORES / EFFICIENCY / 3600, 2),
            }  # fmt: skip


def watch_memory(pid: int, ended: Callable[[], int | None]) -> dict[str, int]:
    """Return the most memory (PSS, MiB) that a process and its children used, until it ends."""
    largest, parent = 0, 0
    while ended() is None:
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            sizes = [process.memory_full_info().pss for process in family]
        except psutil.Error:
            continue
        finally:
            time.sleep(0.5)
        largest, parent = max(largest, sum(sizes)), max(parent, sizes[0])
    return {"memory_mib": largest >> 20, "parent_mib": parent >> 20}


def describe(folder: Path, clips: int) -> Iterator[dict[str, Any]]:
    """Yield how many files and bytes each output has."""
    for path in sorted((folder / "data").iterdir()):
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        size = sum(file.stat().st_size for file in files)
        yield {"output": f"data/{path.name}", "files": len(files), "gb": round(size / 1e9, 2),
               "kb_per_clip": round(size / clips / 1000, 1)}  # fmt: skip


def measure_stages(folder: Path, clips: int) -> None:
    """Make the corpus, run the stages on it, print what they cost."""
    write_params(folder)
    started = time.perf_counter()
    if not (folder / "data/clips/manifest.json").exists():
        make_corpus(folder / "data/clips", clips)
        show({"made": clips, "wall_s": round(time.perf_counter() - started, 1)})
    for name in ("resample", "logmel"):
        show(run_stage(name, folder, clips))
    for line in describe(folder, clips):
        show(line)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where the corpus is, or is to be kept")
    options = parser.parse_args()
    show({"cores": cores(), "forecast_for": f"{PAPER_CLIPS} clips, {FORECAST_CORES} cores"})
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        if options.clips:
            folder.mkdir(parents=True, exist_ok=True)
            measure_stages(folder.resolve(), options.clips)
    finally:
        if not options.folder:
            shutil.rmtree(folder)
    for line in tools.compare(clip):
        show(line)


if __name__ == "__main__":
    main()
