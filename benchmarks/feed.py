"""Speed of reading crops: the loaders of pre-training beside h5py used plainly.

    python -m benchmarks.loader                          # 8,192 clips of ten seconds, 1 GB
    python -m benchmarks.loader --clips 2048 --crops 8192 --folder /path/on/the/disk/to/measure

One line per reader: crops of 96 frames per second and the ratio to h5py with one slice per crop.
`cold`: the files were dropped from the page cache just before, so that the disk is read. Loaders
are consumed as in training, without a step; host and device have read all frames before.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.pretrain import CLIP_FRAMES, synchronize, write_corpus
from pipeline.config import load_config
from pipeline.core.device import choose_device
from pipeline.pretrain.index import (
    EpochSampler,
    Features,
    load_features,
    locate_crops,
    sample_epoch,
)
from pipeline.pretrain.loader import DeviceLoader, DiskLoader, Feed, HostLoader, Loader

REPEATS = 3
CROP_FRAMES = 96
Reader = Callable[[EpochSampler], None]


def main() -> None:
    """Print one line per reader."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=8192, help="size of the corpus")
    parser.add_argument("--crops", type=int, default=8192, help="to read each time")
    parser.add_argument("--batch", type=int, default=128, help="crops per batch")
    parser.add_argument("--folder", type=Path, help="where the corpus is written for a while")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_corpus(Path(folder), options.clips, load_config())
        features = load_features(Path(folder))
        paths = sorted(Path(folder).glob("*.h5"))
        size = f"{options.clips} clips of {CLIP_FRAMES} frames, {features.nbytes / 1e9:.2f} GB"
        print(f"{size}, {os.cpu_count()} cores, {device}", flush=True)  # noqa: T201
        report(readers(features, device), paths, options)


def readers(features: Features, device: torch.device) -> dict[str, Reader]:
    """Return what is compared; the first is what the ratios refer to."""
    loaders: dict[str, type[Loader]] = {
        "disk": DiskLoader,
        "host": HostLoader,
        "device": DeviceLoader,
    }
    made = {name: kind(features, CROP_FRAMES, device) for name, kind in loaders.items()}
    return {
        "h5py, a slice per crop": partial(read_plainly, features, whole=False),
        "h5py, whole clip, then slice": partial(read_plainly, features, whole=True),
        "h5py, file opened for each crop": partial(read_opening, features),
        **{name: partial(consume, feed) for name, feed in made.items()},
    }


def read_plainly(features: Features, plan: EpochSampler, whole: bool) -> None:
    """Read crops one by one with h5py, from files that are open."""
    with ExitStack() as stack:
        files = [stack.enter_context(h5py.File(path)) for path in paths_of(features)]
        frames = [file["log_mel"] for file in files]
        for rows in located(features, plan):
            batch = np.empty((len(rows), CROP_FRAMES, features.n_mels), np.float16)
            for i, (file, start, end, row) in enumerate(rows):
                if whole:
                    batch[i] = frames[file][start:end][row - start : row - start + CROP_FRAMES]
                else:
                    batch[i] = frames[file][row : row + CROP_FRAMES]


def read_opening(features: Features, plan: EpochSampler) -> None:
    """Open the file of each crop anew, and read its whole clip, as a common data set class does."""
    paths = paths_of(features)
    for rows in located(features, plan):
        batch = np.empty((len(rows), CROP_FRAMES, features.n_mels), np.float16)
        for i, (index, start, end, row) in enumerate(rows):
            with h5py.File(paths[index]) as file:
                content = file["log_mel"][start:end]
            batch[i] = content[row - start : row - start + CROP_FRAMES]


def paths_of(features: Features) -> list[Path]:
    """Return the files of features that are on disk."""
    assert isinstance(features.frames, tuple)
    return [file.path for file in features.frames]


def located(features: Features, plan: EpochSampler) -> Iterator[list[tuple[int, int, int, int]]]:
    """Yield batches: of each crop its file, and in it the start and end of the clip and its own."""
    assert isinstance(features.frames, tuple)
    first = torch.tensor([file.first for file in features.frames])
    for clip, draw in zip(plan.clip, plan.draw, strict=True):
        begin = locate_crops(features.start, clip, draw, CROP_FRAMES)[0]
        file = torch.searchsorted(first, begin, right=True) - 1
        places = (features.start[clip], features.start[clip + 1], begin)
        columns = [(place - first[file]).tolist() for place in places]
        yield list(zip(file.tolist(), *columns, strict=True))


def consume(feed: Feed, plan: EpochSampler) -> None:
    """Take all batches as the trainer does; where only draws come, the crops are made as well."""
    batch_size = plan.clip.shape[1]
    clips = torch.zeros(batch_size, dtype=torch.long, device=feed.device)
    batch = feed.empty_batch(batch_size)
    for clip, content in feed.batches(plan):
        clips.copy_(clip, non_blocking=True)
        batch.copy_(content, non_blocking=True)
        if isinstance(feed, DeviceLoader):
            feed.crops(clips, batch)
    synchronize(feed.device)


def report(readers: dict[str, Reader], paths: list[Path], options: argparse.Namespace) -> None:
    """Measure all readers in turn, warm and cold, and print the best of some repeats."""
    best: dict[str, dict[str, float]] = {name: {} for name in readers}
    states = ["warm", "cold"] if hasattr(os, "posix_fadvise") else ["warm"]
    for state, repeat, name in product(states, range(REPEATS), readers):
        if state == "cold" and name in ("host", "device"):
            continue  # they read no file once they exist
        for path in paths:
            prepare(path, state)
        plan = sample_epoch(options.clips, options.batch, repeat, 0)
        steps = max(options.crops // options.batch, 1)
        plan = EpochSampler(plan.clip[:steps], plan.draw[:steps])
        begin = time.perf_counter()
        readers[name](plan)
        speed = plan.clip.numel() / (time.perf_counter() - begin)
        best[name][state] = max(speed, best[name].get(state, 0.0))
    first = next(iter(best.values()))
    for name, speeds in best.items():
        values = {f"{state}_per_s": round(speed) for state, speed in speeds.items()}
        ratios = {f"{state}_ratio": round(v / first[state], 2) for state, v in speeds.items()}
        print(json.dumps({"reader": name, **values, **ratios}), flush=True)  # noqa: T201


def prepare(path: Path, state: str) -> None:
    """Bring a file into the page cache, or write it to the disk and drop it from the cache."""
    if state == "warm":
        with path.open("rb") as file:
            while file.read(2**24):
                pass
        return
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


if __name__ == "__main__":
    main()
