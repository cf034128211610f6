"""Random streams of pre-training: independent of each other, of the process and of the run."""

import torch
from synthetic_training import features, settings

from pipeline.pretrain import distributed, index
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.seeds import Stream, derive_seed

CPU = torch.device("cpu")


def test_seeds_of_all_streams_processes_and_runs_differ():
    seeds = [
        derive_seed(seed, stream, *index)
        for seed in (0, 1, 2**63 - 1)
        for stream in Stream
        for index in [(), (0,), (1,), (2,)]
    ]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed(3, Stream.VIEWS, 1) == derive_seed(3, Stream.VIEWS, 1)
    assert all(0 <= seed < 2**64 for seed in seeds)


def first_views(seed, rank, monkeypatch):
    """The first views of a run's process, which draws in its own order."""
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    updater = Trainer(settings(pretrain__seed=seed), features(), CPU).updater
    crops = torch.arange(16 * 32 * 64.0).view(16, 64, 32)
    return updater.views(crops, torch.arange(16))[0]


def test_process_1_of_a_run_is_not_process_0_of_the_run_with_the_next_seed(monkeypatch):
    assert not torch.equal(first_views(0, 1, monkeypatch), first_views(1, 0, monkeypatch))
    assert torch.equal(first_views(1, 0, monkeypatch), first_views(1, 0, monkeypatch))


def test_epochs_of_one_seed_are_not_those_of_another():
    epochs = [index.sample_epoch(64, 16, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(epoch.clip.flatten().tolist()) for epoch in epochs}) == 9
