"""What the shards of log-mels hold, and which crops an epoch takes of it (paper section 3.1).

`pipeline.pretrain.loader` reads the frames. Clips are numbered in order across all shards, and so
are frames.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, Int64
from torch import Generator, Tensor
from tqdm import tqdm

from pipeline.core import shard_folder
from pipeline.features import hdf5_shards, stats
from pipeline.features.params import REMEDY, STAGE, LogMelParams
from pipeline.pretrain.seeds import Stream, derive_seed


@dataclass(frozen=True)
class FrameFile:
    """Where the frames of one shard are in its file."""

    path: Path
    sha256: str
    offset: int  # bytes before the first frame
    first: int  # number of its first frame, counted over all shards
    frames: int

    def truncated(self) -> ValueError:
        """Return the error for a file that ends before its last frame."""
        return ValueError(
            f"{self.path} ends before its {self.frames} frames do, so it is damaged, or was "
            f"changed after this run began. {REMEDY}"
        )


@dataclass(frozen=True)
class Features:
    """Log-mels of all clips end to end, time first, and the statistics to normalize them."""

    frames: Float16[Tensor, "total F"] | tuple[FrameFile, ...]  # in memory, or where they are
    start: Int64[Tensor, " clips_plus_1"]  # clip i is frames[start[i]:start[i + 1]]
    clip_id: list[str]
    log_mel: LogMelParams
    mean: float
    std: float
    train_clips: Int64[Tensor, " train_clips"] | None = None  # clips to train on; None: all

    def __len__(self) -> int:
        """Return the number of clips to train on."""
        return len(self.start) - 1 if self.train_clips is None else len(self.train_clips)

    def clip_numbers(self, index: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
        """Return the numbers in the shards of clips to train on, given by index below `len`."""
        return index if self.train_clips is None else self.train_clips[index]

    def excluding(self, clip_ids: Collection[str]) -> "Features":
        """Return features of which training leaves some clips out; mean and std stay those of all.

        Raises:
            ValueError: a clip is unknown, or no clip remains.
        """
        if not clip_ids:
            return self
        left_out = set(clip_ids)
        if unknown := sorted(left_out - set(self.clip_id)):
            raise ValueError(
                f"{len(unknown)} clips to leave out, first {unknown[0]}, are not among the "
                f"{len(self.clip_id)} clips of the features: they are of different runs. Run "
                "`dvc repro exclude`."
            )
        remaining = [number for number, name in enumerate(self.clip_id) if name not in left_out]
        if not remaining:
            raise ValueError(
                f"All {len(self.clip_id)} clips are in test splits, so none is left to train on. "
                "See reports/leaks."
            )
        return replace(self, train_clips=torch.tensor(remaining))

    @property
    def n_mels(self) -> int:
        """Values per frame."""
        return self.log_mel.n_mels

    @property
    def nbytes(self) -> int:
        """Size of all frames."""
        return int(self.start[-1]) * self.n_mels * torch.float16.itemsize

    def read_frames(self, device: torch.device) -> Float16[Tensor, "total F"]:
        """Return all frames on a device, read shard by shard.

        Raises:
            ValueError: a shard is damaged, or shorter than when its metadata were read.
        """
        if isinstance(self.frames, Tensor):
            return self.frames.to(device)
        shape = int(self.start[-1]), self.n_mels
        result = torch.empty(shape, dtype=torch.float16, device=device)
        for file in tqdm(self.frames, desc="read features", unit="shard", disable=None):
            shard_folder.check_sum(file.path, file.sha256, STAGE)
            values = np.fromfile(
                file.path, np.float16, file.frames * self.n_mels, offset=file.offset
            )
            if values.size < file.frames * self.n_mels:
                raise file.truncated()
            frames = torch.from_numpy(values.reshape(-1, self.n_mels))
            result[file.first : file.first + file.frames] = frames
        return result


def load_features(folder: Path) -> Features:
    """Return the content of a folder of shards, without reading a frame.

    Raises:
        FileNotFoundError: the folder has no features, or fewer shards than its manifest says.
        ValueError: a file is damaged, or the files do not belong together.
    """
    manifest = shard_folder.verify(folder, hdf5_shards.SUFFIX, STAGE)
    mean, std = stats.read(folder)
    files, starts, clip_id, total = [], [np.zeros(1, np.int64)], list[str](), 0
    front_ends = dict[LogMelParams, Path]()
    paths = shard_folder.shard_paths(folder, manifest, hdf5_shards.SUFFIX)
    sums = shard_folder.read_sums(folder, manifest.shards, STAGE)
    for path, checksum in tqdm(
        [*zip(paths, sums, strict=True)], desc="open features", unit="shard", disable=None
    ):
        index = hdf5_shards.read_index(path)
        frames = int(index.start[-1])
        files.append(FrameFile(path, checksum, index.offset, total, frames))
        starts.append(total + index.start[1:])
        clip_id += index.clip_id
        total += frames
        front_ends.setdefault(index.log_mel, path)
    if len(front_ends) > 1:
        raise ValueError(
            f"The shards in {folder} have {len(front_ends)} different front ends, expected one: "
            f"{', '.join(f'{path.name}: {log_mel}' for log_mel, path in front_ends.items())}. "
            f"{REMEDY}"
        )
    if len(clip_id) != manifest.clips:
        raise ValueError(
            f"The shards in {folder} hold {len(clip_id)} clips, but its manifest.json has "
            f"{manifest.clips}: they are of different runs. {REMEDY}"
        )
    start = torch.from_numpy(np.concatenate(starts))
    return Features(tuple(files), start, clip_id, next(iter(front_ends)), mean, std)


@dataclass(frozen=True)
class EpochSampler:
    """The crops of one epoch, batch by batch, on the CPU."""

    clip: Int64[Tensor, "steps B"]
    draw: Float[Tensor, "steps B"]  # in [0, 1), where in the clip

    def share(self, rank: int, world: int) -> "EpochSampler":
        """Return the share of one of `world` processes in each batch; together they are all of it.

        Raises:
            ValueError: the processes cannot have equal shares.
        """
        batch_size = self.clip.shape[1]
        if batch_size % world or not 0 <= rank < world:
            raise ValueError(
                f"pretrain.batch_size = {batch_size} cannot be shared equally by {world} "
                f"processes (this is number {rank}). Make it a multiple of {world}."
            )
        own = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        return EpochSampler(self.clip[:, own], self.draw[:, own])


def sample_epoch(
    clips: int, batch_size: int, seed: int, epoch: int, crops_per_clip: int = 1
) -> EpochSampler:
    """Return the crops of one epoch, which depend on the arguments alone.

    Every clip is used at most once, in random order, in full batches only. Its `crops_per_clip`
    crops are in the same batch, each at a draw of its own.

    Raises:
        ValueError: there are fewer clips than a batch needs, or a batch is not a multiple of
            `crops_per_clip`.
    """
    if batch_size % crops_per_clip:
        raise ValueError(
            f"pretrain.batch_size = {batch_size} is not a multiple of crops_per_clip = "
            f"{crops_per_clip}."
        )
    per_batch = batch_size // crops_per_clip
    steps = clips // per_batch
    if steps == 0:
        raise ValueError(
            f"There are {clips} clips, fewer than pretrain.batch_size = {batch_size} needs at once "
            f"({per_batch}). Lower it, or pre-train on more clips."
        )
    generator = Generator().manual_seed(derive_seed(seed, Stream.EPOCH, epoch))
    order = torch.randperm(clips, generator=generator)[: steps * per_batch]
    clip = order.view(steps, per_batch).repeat_interleave(crops_per_clip, dim=1)
    return EpochSampler(clip, torch.rand(clip.shape, generator=generator))


def locate_crops(
    start: Int64[Tensor, " clips_plus_1"],
    clip: Int64[Tensor, " B"],
    draw: Float[Tensor, " B"],
    length: int,
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Return each crop's first frame, and how many of its `length` frames the clip has.

    Every start is equally likely, including the last.
    """
    first, frames = start[clip], start[clip + 1] - start[clip]
    slack = (frames - length).clamp_min(0)
    offset = (draw * (slack + 1)).long().clamp_max(slack)  # a draw may round to 1
    return first + offset, frames.clamp_max(length)
