"""Compare a download that is killed at random moments with an uninterrupted one: `compare`."""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from media_server import Site, serve
from ruamel.yaml import YAML
from tqdm import tqdm

import stages.download
from pipeline.core.stage import run

ROOT = Path(__file__).parents[1]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["stages.download"])
RATE = 8000
CONNECTIONS = 4
PER_SHARD = 8
TRIES = 3
LATE = 3  # every third kill happens while the shards are published
# How a recording behaves (see media_server), and the final status of its clip, whenever the process
# is killed.
KINDS = [
    *[("ok", "ok")] * 6,
    *[("s503x1", "ok"), ("s503x2", "ok"), ("s429x1", "ok")],
    *[("n404", "gone"), ("media404", "gone"), ("n410", "gone"), ("n403", "login")],
    *[("html", "no_audio"), ("corrupt", "corrupt"), ("short", "short")],
]


@dataclass(frozen=True)
class Comparison:
    """What a killed run and an uninterrupted one have left."""

    uninterrupted: dict[str, bytes]  # data/clips
    killed: dict[str, bytes]
    statuses: list[str]  # expected in the ledger
    kills: int
    late: int  # of these, while shards were published
    partial: int  # kills after which data/clips was incomplete
    requests: tuple[int, int]  # of the uninterrupted run and the killed one
    last_requests: int  # of one more run
    leftovers: list[str]  # files of the store that are not shards
    seconds: tuple[float, float]  # uninterrupted, killed


def compare(folder: Path, clips: int, kills: int, seed: int = 0) -> Comparison:
    """Download the same clips twice, once with kills at moments drawn with the seed."""
    rng = random.Random(seed)
    web = folder / "web"
    names = make_recordings(web, clips)
    with serve(web) as site:
        repositories = [folder / name for name in ("uninterrupted", "killed")]
        for repository in repositories:
            make_repository(repository, names, site)
        uninterrupted, killed = repositories
        started = time.monotonic()
        calls = finish(uninterrupted)
        ended = time.monotonic()
        expected, first = content_of(uninterrupted), take_requests(site)
        contents = kill_while_fetching(killed, site, clips, kills - kills // LATE, rng)
        late = kills - len(contents)
        contents += kill_while_publishing(killed, calls, late, rng)
        finish(killed)
        seconds = ended - started, time.monotonic() - ended
        second = take_requests(site)
        finish(killed)
        return Comparison(
            uninterrupted=expected,
            killed=content_of(killed),
            statuses=[status for _, status in kinds(clips)],
            kills=len(contents),
            late=late,
            partial=sum(content not in ({}, expected) for content in contents),
            requests=(first, second),
            last_requests=take_requests(site),
            leftovers=[p.name for p in killed.glob(".work/clips/*/packs/*") if p.suffix != ".tar"],
            seconds=seconds,
        )


def kinds(clips: int) -> list[tuple[str, str]]:
    """Behaviour and status of each recording."""
    return [KINDS[i % len(KINDS)] for i in range(clips)]


def make_recordings(folder: Path, clips: int) -> list[str]:
    """Write recordings of 3 s that differ, and return their names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{kind}-{i}" for i, (kind, _) in enumerate(kinds(clips))]
    for name in names:
        path, noise = folder / f"{name}.wav", rng.uniform(-0.3, 0.3, 3 * RATE)
        if name.startswith("corrupt"):
            path.write_bytes(rng.bytes(10_000))
        else:
            soundfile.write(path, noise[: RATE // 2] if name.startswith("short") else noise, RATE)
    return names


def make_repository(folder: Path, names: list[str], site: Site) -> None:
    """Write parameters and a list of segments from 0.5 to 2.5 s."""
    (folder / "data").mkdir(parents=True)
    rows = [f'{name}, 0.500, 2.500, "/m/{i}"\n' for i, name in enumerate(names)]
    (folder / "data" / "segments.csv").write_text("".join(rows))
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml")
    values["source"] = "url"
    values["sources"]["url"] |= {"segments": "data/segments.csv", "url": site.template}
    values["download"] |= {"max_failed": 0.9, "clips_per_shard": PER_SHARD}
    values["network"] |= {"clips_per_hour": 0.0, "tries": TRIES, "backoff_s": 0.01, "pause_s": 0.1}
    values["compute"] |= {"connections": CONNECTIONS}
    yaml.dump(values, folder / "params.yaml")


def kill_while_fetching(
    folder: Path, site: Site, clips: int, kills: int, rng: random.Random
) -> list[dict[str, bytes]]:
    """Kill the stage repeatedly, each time some milliseconds after a random number of requests.

    Returns what data/clips held after each kill, except of stages that had ended before.
    """
    contents = []
    for moment in sorted(rng.sample(range(1, clips), kills)):
        process = start(folder)
        while process.is_alive() and len(site.requests) < moment:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        if ended_by_kill(process, folder):
            contents.append(content_of(folder))
    return contents


def kill_while_publishing(
    folder: Path, calls: int, kills: int, rng: random.Random
) -> list[dict[str, bytes]]:
    """Kill the stage repeatedly, at random function calls during publication."""
    contents = []
    while len(contents) < kills:
        if ended_by_kill(start(folder, rng.randint(1, calls)), folder):
            contents.append(content_of(folder))
    return contents


def start(folder: Path, call: int = 0) -> multiprocessing.Process:
    """Start the stage in a folder, in a process that has its imports done."""
    process = PROCESSES.Process(target=run_and_die, args=(folder, call))
    process.start()
    return process


def ended_by_kill(process: multiprocessing.Process, folder: Path) -> bool:
    """Wait for the stage to end; return whether it was killed."""
    process.join()
    with contextlib.closing(process):
        if process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError((folder / "log").read_text())
        return process.exitcode != 0


def finish(folder: Path) -> int:
    """Run the stage to its end; return the number of function calls during publication."""
    assert not ended_by_kill(start(folder), folder)
    return int((folder / "calls").read_text())


def run_and_die(folder: Path, call: int) -> None:
    """Run the stage, and die at a function call counted from the start of publication (0: never).

    Messages go to `log`, the number of calls to `calls`.
    """
    os.chdir(folder)
    os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    tqdm.set_lock(threading.RLock())  # its own, between processes, would outlive this one
    write, calls = stages.download.clip_shards.write, 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(*arguments: Any) -> None:
        sys.setprofile(count)
        write(*arguments)

    stages.download.clip_shards.write = counted
    run("download", stages.download.main)
    sys.setprofile(None)
    Path("calls").write_text(str(calls))


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the content of data/clips by file name; nothing if there is no such folder."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("data/clips/*"))}


def take_requests(site: Site) -> int:
    """Return the number of requests so far, and reset it."""
    count = site.requests.total()
    site.requests = Counter()
    return count
