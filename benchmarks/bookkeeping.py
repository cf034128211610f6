"""The cost of the data stages' bookkeeping for a number of clips.

    python -m benchmarks.bookkeeping --rows 2041789

writes a list like AudioSet's with that many rows, and the journal of a download that tried them all
(80 % fetched, as in section 3.1 of the paper), to a temporary folder. Then it measures each step of
a run with nothing left to fetch: reading list and journal, status, ledger, planning the shards.
"""

import argparse
import json
import random
import resource
import string
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.commands import download_status
from pipeline.core import shard_folder
from pipeline.corpus.clips import ledger, segments
from pipeline.corpus.fetch.clip_store import ClipStore
from pipeline.corpus.fetch.download_ledger import clip_key, to_row

AUDIOSET_ROWS = 2_041_789
SHARD = 4096  # rows
CLIP_BYTES = 1_000_000  # 10 s of stereo at 48 kHz as FLAC, about
PACK_CLIPS = 1000
LOST = {"gone": 0.15, "login": 0.02, "geo": 0.02, "blocked": 0.005, "transient": 0.005}


def write_list(path: Path, rows: int) -> None:
    """Write a segment list that resembles AudioSet's."""
    rng = random.Random(0)
    letters = string.ascii_letters + string.digits + "-_"
    with path.open("w") as out:
        out.write(f"# Segments csv\n# num_ytids={rows}\n# YTID, start_seconds, end_seconds, x\n")
        for row in range(rows):
            recording_id = "".join(rng.choices(letters, k=7)) + f"{row:04x}"[-4:]
            start = rng.choice([0, 20, 30, 30, 30, 40, 70, 420])
            labels = ",".join(f"/m/0{rng.randrange(527):03d}" for _ in range(rng.randint(1, 3)))
            out.write(f'{recording_id}, {start}.000, {start + 10}.000, "{labels}"\n')


def write_journal(folder: Path, listed: list[segments.Segment]) -> None:
    """Write a journal in which every clip was tried; the packs are sparse files."""
    rng = random.Random(1)
    (folder / "packs").mkdir(parents=True)
    kinds, shares = list(LOST), list(LOST.values())
    with (folder / "journal.jsonl").open("w") as out:
        for count, segment in enumerate(listed):
            pack, position = divmod(count, PACK_CLIPS)
            line: dict[str, Any] = {
                "key": clip_key(segment),
                "time_s": 1e9 + 14.4 * count,
                "tries": 1,
            }
            if rng.random() < sum(shares):
                line |= {"status": rng.choices(kinds, shares)[0], "reason": "Video unavailable"}
            else:
                digest = f"{rng.getrandbits(256):064x}"
                line |= {"status": "ok", "bytes": CLIP_BYTES, "sha256": digest, "duration_s": 10.0}
                line |= {"pack": f"{pack:05d}.pack", "offset": position * CLIP_BYTES, "tool": "x 1"}
            out.write("\n" + json.dumps(line))
    for pack in range(-(-len(listed) // PACK_CLIPS)):
        with (folder / "packs" / f"{pack:05d}.pack").open("wb") as out:
            out.truncate(PACK_CLIPS * CLIP_BYTES)


def timed(name: str, work: Callable[[], Any]) -> Any:
    """Run a step and print its time and the peak memory of the process."""
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"{name:34} {wall:7.1f} s  {cpu:7.1f} s CPU  peak {peak:6.0f} MiB\n")
    return result


def measure(folder: Path) -> None:
    """Measure every step on the files in a folder."""
    listed = timed("read the segment list", lambda: segments.read(folder / "segments.csv"))
    store = timed("read the journal", lambda: ClipStore(folder))
    timed("which clips are settled", lambda: sum(store.is_settled(clip_key(s)) for s in listed))
    timed(
        "status",
        lambda: list(download_status.label_table(download_status.read_status(listed, store), {})),
    )
    rows = timed("ledger of all rows", lambda: [to_row(s, store.last(clip_key(s))) for s in listed])
    path = folder / "ledger.csv"
    timed("write the ledger", lambda: ledger.write(path, rows))
    timed("check the ledger", lambda: ledger.check_failed(rows, "download", 0.3, path))
    plan = timed("plan the shards", lambda: ledger.manifest_of(rows, SHARD))
    timed("rows of every shard", lambda: sum(len(part) for part in plan.rows_of(rows)))
    timed("paths of every shard", lambda: len(shard_folder.shard_paths(folder, plan, ".tar")))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=AUDIOSET_ROWS)
    parser.add_argument("--folder", type=Path, help="where the files are, or will be kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "journal.jsonl").exists():
            write_list(folder / "segments.csv", arguments.rows)
            write_journal(folder, segments.read(folder / "segments.csv"))
            sys.stdout.write(f"{arguments.rows} rows made in {folder}; run again with --folder\n")
        measure(folder)


if __name__ == "__main__":
    main()
