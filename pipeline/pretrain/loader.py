"""Loaders of crops: from the device's memory, host memory or the disk, wherever the frames fit.

All loaders give exactly the same crops. A clip shorter than a crop is padded with digital silence,
as a shard would store it.
"""

import logging
import os
import resource
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Bool, Float, Float16, Int64
from torch import Tensor

from pipeline.features.front_end import SILENCE
from pipeline.pretrain.index import EpochSampler, Features, FrameFile, locate_crops

logger = logging.getLogger(__name__)

SILENT = float(np.float16(SILENCE))
THREADS = 4  # each assembles one batch at a time
AHEAD = 2 * THREADS  # batches in preparation
SPARE_FILES = 256  # open besides the shards


class Loader(ABC):
    """What the host sends for each step, and how the device turns it into crops."""

    def __init__(self, features: Features, crop_frames: int, device: torch.device) -> None:
        self.features = features
        self.crop_frames = crop_frames
        self.device = device
        self.wait_s = 0.0  # for data, by the consumer of batches

    @abstractmethod
    def empty_batch(self, batch_size: int) -> Tensor:
        """Return a tensor on the device for a batch, which excludes the clips' numbers."""

    @abstractmethod
    def batches(
        self, sampler: EpochSampler, first_step: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the clips and the batch of each step of an epoch, from `first_step` on."""

    @abstractmethod
    def crops(self, clip: Int64[Tensor, " B"], batch: Tensor) -> Float[Tensor, "B F T"]:
        """Return the normalized crops of a batch on the device, without waiting for it."""

    def _normalized(self, frames: Float[Tensor, "B T F"]) -> Float[Tensor, "B F T"]:
        return ((frames - self.features.mean) / self.features.std).transpose(1, 2)


class DeviceLoader(Loader):
    """All frames in the device's memory; a batch holds the draws."""

    def __init__(self, features: Features, crop_frames: int, device: torch.device) -> None:
        super().__init__(features, crop_frames, device)
        self.frames = features.read_frames(device)
        self.start = features.start.to(device)

    def empty_batch(self, batch_size: int) -> Float[Tensor, " B"]:
        """Return a tensor for the draws."""
        return torch.zeros(batch_size, device=self.device)

    def batches(
        self, sampler: EpochSampler, first_step: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield clips and draws, sent to the device once per epoch."""
        clip, draw = (part[first_step:].to(self.device) for part in (sampler.clip, sampler.draw))
        yield from zip(clip, draw, strict=True)

    def crops(
        self, clip: Int64[Tensor, " B"], batch: Float[Tensor, " B"]
    ) -> Float[Tensor, "B F T"]:
        """Return the crops at the draws."""
        rows, silent = crop_rows(self.start, clip, batch, self.crop_frames)
        frames = self.frames[rows].float()
        return self._normalized(torch.where(silent[..., None], SILENT, frames))


class StreamLoader(Loader):
    """Frames outside the device; threads assemble the crops of the next steps."""

    @abstractmethod
    def _read(self, clip: Tensor, draw: Tensor, out: Float16[np.ndarray, "B T F"]) -> None:
        """Fill in the frames of a batch of crops; called in several threads at once."""

    def empty_batch(self, batch_size: int) -> Float16[Tensor, "B T F"]:
        """Return a tensor for the frames of the crops."""
        shape = batch_size, self.crop_frames, self.features.n_mels
        return torch.zeros(shape, dtype=torch.float16, device=self.device)

    def batches(
        self, sampler: EpochSampler, first_step: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield clips, on the device, and the frames of their crops, in host memory.

        Raises:
            ValueError: a shard is shorter than when its metadata were read.
        """
        clip, draw = sampler.clip[first_step:], sampler.draw[first_step:]
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="loader")
        try:
            submitted = (pool.submit(self._job(*crops)) for crops in zip(clip, draw, strict=True))
            pending = deque(islice(submitted, AHEAD))
            for clip_on_device in clip.to(self.device):
                frames = self._wait(pending.popleft())
                pending.extend(islice(submitted, 1))
                yield clip_on_device, frames
        finally:
            pool.shutdown(cancel_futures=True)

    def _job(self, clip: Tensor, draw: Tensor) -> Callable[[], Tensor]:
        """Return a thread's job; allocate its memory here, in the thread that uses the GPU."""
        shape = len(clip), self.crop_frames, self.features.n_mels
        pinned = self.device.type == "cuda"  # torch reuses the memory after its copy to the GPU
        frames = torch.empty(shape, dtype=torch.float16, pin_memory=pinned)

        def fill() -> Tensor:
            self._read(clip, draw, frames.numpy())
            return frames

        return fill

    def _wait(self, batch: Future[Tensor]) -> Tensor:
        begin = time.perf_counter()
        frames = batch.result()
        self.wait_s += time.perf_counter() - begin
        return frames

    def crops(
        self, clip: Int64[Tensor, " B"], batch: Float16[Tensor, "B T F"]
    ) -> Float[Tensor, "B F T"]:
        """Return the crops, whose frames have arrived."""
        return self._normalized(batch.float())


class HostLoader(StreamLoader):
    """All frames in host memory."""

    def __init__(self, features: Features, crop_frames: int, device: torch.device) -> None:
        super().__init__(features, crop_frames, device)
        self.frames = features.read_frames(torch.device("cpu")).numpy()

    def _read(self, clip: Tensor, draw: Tensor, out: Float16[np.ndarray, "B T F"]) -> None:
        rows, silent = crop_rows(self.features.start, clip, draw, self.crop_frames)
        np.take(self.frames, rows.numpy(), axis=0, out=out, mode="clip")
        out[silent.numpy()] = SILENT


class DiskLoader(StreamLoader):
    """Frames in the shards' files, of which only the crops are read.

    Raises:
        ValueError: the features were not loaded from files.
    """

    def __init__(self, features: Features, crop_frames: int, device: torch.device) -> None:
        super().__init__(features, crop_frames, device)
        if isinstance(features.frames, Tensor):
            raise ValueError("These features are in memory; only a folder's can be read from disk.")
        self.files = features.frames
        self.first = np.array([file.first for file in self.files])
        self.offset = np.array([file.offset for file in self.files])
        self.descriptors = open_for_crops([file.path for file in self.files])
        weakref.finalize(self, close_all, self.descriptors)

    def _read(self, clip: Tensor, draw: Tensor, out: Float16[np.ndarray, "B T F"]) -> None:
        located = locate_crops(self.features.start, clip, draw, self.crop_frames)
        first, real = (part.numpy() for part in located)
        shard = np.searchsorted(self.first, first, side="right") - 1
        row_bytes = self.features.n_mels * out.itemsize
        position = self.offset[shard] + (first - self.first[shard]) * row_bytes
        reads = zip(out, *(x.tolist() for x in (shard, position, real)), strict=True)
        for crop, number, byte, frames in reads:
            read_at(self.descriptors[number], byte, crop[:frames], self.files[number])
            crop[frames:] = SILENT


def crop_rows(
    start: Int64[Tensor, " clips_plus_1"],
    clip: Int64[Tensor, " B"],
    draw: Float[Tensor, " B"],
    length: int,
) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Return the row of each frame of the crops, and whether the frame is padding."""
    first, real = locate_crops(start, clip, draw, length)
    frame = torch.arange(length, device=clip.device)
    rows = first[:, None] + frame.clamp_max(real[:, None] - 1)
    return rows, frame >= real[:, None]


def open_for_crops(paths: list[Path]) -> list[int]:
    """Open files for random access; raise the limit on open files if needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(paths) + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    if hasattr(os, "posix_fadvise"):  # not on macOS
        for descriptor in descriptors:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptors


def close_all(descriptors: list[int]) -> None:
    """Close the files."""
    for descriptor in descriptors:
        os.close(descriptor)


def read_at(descriptor: int, byte: int, out: Float16[np.ndarray, "T F"], file: FrameFile) -> None:
    """Fill an array with the bytes at an offset of a file, without holding Python's lock.

    Raises:
        ValueError: the file is too short.
    """
    left = out.data.cast("B")
    while left:
        try:
            count = os.preadv(descriptor, [left], byte)
        except OSError as error:
            error.filename = str(file.path)  # for its message
            raise
        if count == 0:
            raise file.truncated()
        left, byte = left[count:], byte + count


def choose_loader(
    features: Features, crop_frames: int, device: torch.device, where: str, processes: int = 1
) -> Loader:
    """Return the loader for `where`: device, host or disk; `auto`: the first left half free.

    `processes` share this machine's memory, each with its own loader and its own GPU.
    """
    host = available_memory() // processes
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host
    fits = {"device": 2 * features.nbytes < free, "host": 2 * features.nbytes < host, "disk": True}
    memory = next(name for name in fits if fits[name]) if where == "auto" else where
    logger.info(
        "%.2f GB of features, free are %.1f GB on %s and %.1f GB of host memory: read from %s (%s)",
        *(features.nbytes / 1e9, free / 1e9, device, host / 1e9, memory, where),
    )
    loaders: dict[str, type[Loader]] = {
        "device": DeviceLoader,
        "host": HostLoader,
        "disk": DiskLoader,
    }
    return loaders[memory](features, crop_frames, device)


def available_memory() -> int:
    """Return the usable bytes of host memory: what is free, or the job's limit if lower."""
    return min([psutil.virtual_memory().available, *group_limits()])


def group_limits(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Return the memory limits, in bytes, of this process's control groups (version 2)."""
    lines = groups.read_text().splitlines() if groups.exists() else []  # none on macOS
    limits = []
    for own in (root / line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        files = [group / "memory.max" for group in (own, *own.parents)]
        texts = [file.read_text().strip() for file in files if file.exists()]
        limits += [int(text) for text in texts if text != "max"]
    return limits
