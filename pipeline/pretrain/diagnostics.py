"""Diagnostics of a run: effective ranks, the cross-correlation matrix, example views.

All processes must call these functions together, since some average over the processes.
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from pipeline.pretrain.augment import Views
from pipeline.pretrain.index import EpochSampler
from pipeline.pretrain.loader import Loader
from pipeline.pretrain.loss import cross_correlation
from pipeline.pretrain.model import BarlowTwins
from pipeline.pretrain.seeds import Stream, derive_seed
from pipeline.pretrain.step import Updater
from pipeline.pretrain.telemetry import dead_dimensions, effective_rank

# Limits of the correlation picture.
MAX_CLIPS = 512
MAX_FRAMES = 96 * MAX_CLIPS
MAX_DIMS = 256
RANK_BATCH = 64  # crops embedded at a time


@torch.no_grad()
def correlation(updater: Updater) -> Float[Tensor, "d d"]:
    """Return C (equation 2) of the first clips and dimensions, without any effect on the run."""
    p, loader = updater.settings.pretrain, updater.loader
    features, device = loader.features, loader.device
    generator = Generator(device).manual_seed(derive_seed(p.seed, Stream.DIAGNOSTIC_VIEWS))
    count = min(MAX_CLIPS, len(features), MAX_FRAMES // p.crop_frames)
    index = torch.arange(max(2, count)) % len(features)
    clips, crops = random_crops(loader, features.clip_numbers(index), p.seed)
    views = Views(updater.settings.augment, features.n_mels, p.crop_frames, generator)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(p.seed, Stream.DIAGNOSTIC_DROPOUT))
        model = copy.deepcopy(updater.model).train()
        z_1, z_2 = model(*views(crops, clips))
    return cross_correlation(z_1[:, :MAX_DIMS], z_2[:, :MAX_DIMS])


@torch.no_grad()
def ranks(model: BarlowTwins, loader: Loader, clips: int, seed: int) -> dict[str, float]:
    """Return effective ranks and dead dimensions of y and z for `clips` crops; none for 0."""
    if clips == 0:
        return {}
    encoder, projector = model.encoder.eval(), model.projector.eval()
    _, crops = random_crops(loader, spread_clips(loader, clips), seed)
    y = torch.cat([encoder(part[:, None]) for part in crops.split(RANK_BATCH)])
    z = projector(y)
    model.train()
    return {
        "rank_y": effective_rank(y),
        "rank_z": effective_rank(z),
        "dead_y": float(dead_dimensions(y)),
        "dead_z": float(dead_dimensions(z)),
    }


def example_views(updater: Updater, clips: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return clips spread over the data, a crop of each [N, F, T] and the crop's two views."""
    loader = updater.loader
    numbers, crops = random_crops(
        loader, spread_clips(loader, clips), updater.settings.pretrain.seed
    )
    return (numbers, crops, *updater.views(crops, numbers))


def random_crops(loader: Loader, clips: Int[Tensor, " N"], seed: int) -> tuple[Tensor, Tensor]:
    """Return the clips' numbers, on the device, and a random crop of each clip."""
    generator = Generator().manual_seed(derive_seed(seed, Stream.DIAGNOSTIC_CROPS))
    draw = torch.rand(1, len(clips), generator=generator)
    ((numbers, batch),) = loader.batches(EpochSampler(clip=clips[None], draw=draw))
    numbers, batch = numbers.to(loader.device), batch.to(loader.device)
    return numbers, loader.crops(numbers, batch)


def spread_clips(loader: Loader, clips: int) -> Int[Tensor, " n"]:
    """Return the numbers of at most `clips` clips, evenly spread over the data."""
    total = len(loader.features)
    index = torch.linspace(0, total - 1, min(clips, total)).long()
    return loader.features.clip_numbers(index)
