"""Speed of reading crops: the loaders of pre-training against plain h5py.

    python -m benchmarks.loader                          # 8,192 clips of ten seconds, 1 GB
    python -m benchmarks.loader --clips 2048 --crops 8192 --folder /path/on/the/disk/to/measure

One line per reader: crops of 96 frames per second, and the ratio to h5py with one slice per crop.
`cold`: the files were dropped from the page cache just before, so the disk is read. Loaders are
consumed as in training, but without a step; host and device have already read all frames.
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
from pipeline.pretrain.loader import DeviceLoader, DiskLoader, HostLoader, Loader

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
    """Return the readers by name; ratios refer to the first."""
    loaders: dict[str, type[Loader]] = {
        "disk": DiskLoader,
        "host": HostLoader,
        "device": DeviceLoader,
    }
    return {
        "h5py, a slice per crop": partial(read_plainly, features, whole=False),
        "h5py, whole clip, then slice": partial(read_plainly, features, whole=True),
        "h5py, file opened for each crop": partial(read_opening, features),
        **{
            name: partial(consume, loader(features, CROP_FRAMES, device))
            for name, loader in loaders.items()
        },
    }


def read_plainly(features: Features, sampler: EpochSampler, whole: bool) -> None:
    """Read crops one by one with h5py, from files that are open."""
    with ExitStack() as stack:
        files = [stack.enter_context(h5py.File(path)) for path in paths_of(features)]
        frames = [file["log_mel"] for file in files]
        for rows in locate(features, sampler):
            batch = np.empty((len(rows), CROP_FRAMES, features.n_mels), np.float16)
            for i, (file, start, end, row) in enumerate(rows):
                if whole:
                    batch[i] = frames[file][start:end][row - start : row - start + CROP_FRAMES]
                else:
                    batch[i] = frames[file][row : row + CROP_FRAMES]


def read_opening(features: Features, sampler: EpochSampler) -> None:
    """Open a file and read a whole clip for every crop, as common dataset classes do."""
    paths = paths_of(features)
    for rows in locate(features, sampler):
        batch = np.empty((len(rows), CROP_FRAMES, features.n_mels), np.float16)
        for i, (index, start, end, row) in enumerate(rows):
            with h5py.File(paths[index]) as file:
                content = file["log_mel"][start:end]
            batch[i] = content[row - start : row - start + CROP_FRAMES]


def paths_of(features: Features) -> list[Path]:
    """Return the files of features that are on disk."""
    assert isinstance(features.frames, tuple)
    return [file.path for file in features.frames]


def locate(features: Features, sampler: EpochSampler) -> Iterator[list[tuple[int, int, int, int]]]:
    """Yield batches of crops, each as its file, and in it its clip's start and end, and its own."""
    assert isinstance(features.frames, tuple)
    first = torch.tensor([file.first for file in features.frames])
    for clip, draw in zip(sampler.clip, sampler.draw, strict=True):
        begin = locate_crops(features.start, clip, draw, CROP_FRAMES)[0]
        file = torch.searchsorted(first, begin, right=True) - 1
        rows = (features.start[clip], features.start[clip + 1], begin)
        columns = [(row - first[file]).tolist() for row in rows]
        yield list(zip(file.tolist(), *columns, strict=True))


def consume(loader: Loader, sampler: EpochSampler) -> None:
    """Take all batches as the trainer does; make the crops where the loader sends draws only."""
    batch_size = sampler.clip.shape[1]
    clips = torch.zeros(batch_size, dtype=torch.long, device=loader.device)
    batch = loader.empty_batch(batch_size)
    for clip, content in loader.batches(sampler):
        clips.copy_(clip, non_blocking=True)
        batch.copy_(content, non_blocking=True)
        if isinstance(loader, DeviceLoader):
            loader.crops(clips, batch)
    synchronize(loader.device)


def report(readers: dict[str, Reader], paths: list[Path], options: argparse.Namespace) -> None:
    """Measure all readers, warm and cold, and print the best of several repeats."""
    best: dict[str, dict[str, float]] = {name: {} for name in readers}
    states = ["warm", "cold"] if hasattr(os, "posix_fadvise") else ["warm"]
    for state, repeat, name in product(states, range(REPEATS), readers):
        if state == "cold" and name in ("host", "device"):
            continue  # these have read their files
        for path in paths:
            prepare(path, state)
        sampler = sample_epoch(options.clips, options.batch, repeat, 0)
        steps = max(options.crops // options.batch, 1)
        sampler = EpochSampler(sampler.clip[:steps], sampler.draw[:steps])
        begin = time.perf_counter()
        readers[name](sampler)
        speed = sampler.clip.numel() / (time.perf_counter() - begin)
        best[name][state] = max(speed, best[name].get(state, 0.0))
    first = next(iter(best.values()))
    for name, speeds in best.items():
        values = {f"{state}_per_s": round(speed) for state, speed in speeds.items()}
        ratios = {f"{state}_ratio": round(v / first[state], 2) for state, v in speeds.items()}
        print(json.dumps({"reader": name, **values, **ratios}), flush=True)  # noqa: T201


def prepare(path: Path, state: str) -> None:
    """Read a file into the page cache, or write it to disk and drop it from the cache."""
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
