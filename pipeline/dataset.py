"""Log-mel features for pre-training: all shards in one array, from which crops are taken."""

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Generator, Tensor
from tqdm import tqdm

from pipeline.features import SILENCE
from pipeline.params import check
from pipeline.params.data import LogMelParams


@dataclass(frozen=True)
class Features:
    """Log-mels of all clips end to end, time first, and the statistics that normalize them."""

    frames: Float16[Tensor, "total F"]
    start: Int[Tensor, " clips_plus_1"]  # clip i is frames[start[i]:start[i + 1]]
    clip_id: list[str]
    log_mel: LogMelParams
    mean: float
    std: float

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.start) - 1

    def to(self, device: torch.device) -> "Features":
        """Return the same features with their arrays on a device."""
        arrays = {"frames": self.frames.to(device), "start": self.start.to(device)}
        return Features(**{**self.__dict__, **arrays})

    def crop(
        self, clips: Int[Tensor, " B"], length: int, generator: Generator
    ) -> Float[Tensor, "B F T"]:
        """Return one random crop of `length` frames of each clip, normalized.

        Every start is equally likely. A shorter clip is followed by digital silence.
        """
        first, frames = self.start[clips], self.start[clips + 1] - self.start[clips]
        slack = (frames - length).clamp_min(0)
        draw = torch.rand(len(clips), generator=generator, device=clips.device)
        offset = (draw * (slack + 1)).long().clamp_max(slack)
        time = offset[:, None] + torch.arange(length, device=clips.device)  # [B, T]
        real = time < frames[:, None]
        rows = first[:, None] + time.clamp_max(frames[:, None] - 1)
        crop = torch.where(real[..., None], self.frames[rows].float(), SILENCE)
        return ((crop - self.mean) / self.std).transpose(1, 2)


def load_features(folder: Path) -> Features:
    """Read all shards of a folder into memory.

    Raises:
        FileNotFoundError: the folder has no features, or fewer shards than its manifest says.
        ValueError: shards were made with different front ends.
    """
    manifest = json.loads(_existing(folder / "manifest.json").read_text())
    stats = json.loads(_existing(folder / "stats.json").read_text())
    paths = [_existing(folder / f"{i:05d}.h5") for i in range(manifest["shards"])]
    frames, starts, clip_ids, front_ends = [], [np.zeros(1, np.int64)], list[str](), set[str]()
    for path in tqdm(paths, desc="read features", unit="shard", disable=None):
        with h5py.File(path, "r") as shard:
            frames.append(torch.from_numpy(shard["log_mel"][:]))
            starts.append(starts[-1][-1] + shard["start"][1:])
            clip_ids += shard["clip_id"].asstr()[:].tolist()
            front_ends.add(shard.attrs["logmel"])
    if len(front_ends) != 1:
        raise ValueError(
            f"The shards in {folder} have {len(front_ends)} different front ends, expected one: "
            f"{sorted(front_ends)}. Run `dvc repro -f logmel`."
        )
    return Features(
        frames=torch.cat(frames),
        start=torch.from_numpy(np.concatenate(starts)),
        clip_id=clip_ids,
        log_mel=check(json.loads(front_ends.pop()), LogMelParams, prefix="logmel", path=folder),
        mean=stats["mean"],
        std=stats["std"],
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing, so the features are absent or incomplete. Run `dvc repro logmel`, "
            "or `dvc pull logmel` where a remote has them."
        )
    return path


def epoch_batches(clips: int, batch_size: int, generator: Generator) -> Int[Tensor, "steps B"]:
    """Return one epoch's batches: every clip at most once, in random order, full batches only.

    Raises:
        ValueError: there are fewer clips than one batch needs.
    """
    steps = clips // batch_size
    if steps == 0:
        raise ValueError(
            f"There are {clips} clips, fewer than pretrain.batch_size = {batch_size}. Lower it, "
            "or pre-train on more clips."
        )
    order = torch.randperm(clips, generator=generator, device=generator.device)
    return order[: steps * batch_size].view(steps, batch_size)
