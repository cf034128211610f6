"""The three loaders: the same crops from the device, host memory and the disk."""

import logging
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_features import LOG_MEL, write_folder
from torch import Generator

from pipeline.pretrain import loader
from pipeline.pretrain.index import EpochSampler, Features, load_features, sample_epoch
from pipeline.pretrain.loader import DeviceLoader, DiskLoader, HostLoader, choose_loader

CPU = torch.device("cpu")
LOADERS = [DeviceLoader, HostLoader, DiskLoader]
STREAM_LOADERS = [HostLoader, DiskLoader]
LENGTHS = [[30, 5, 12], [], [20, 16, 17], [1, 40, 25], []]  # frames, of clips by shard
SAMPLER = sample_epoch(9, 6, 0, 0, crops_per_clip=2)  # 3 steps, all clips


@pytest.fixture
def features(tmp_path):
    return load_features(write_folder(tmp_path, LENGTHS))


def in_memory(*lengths, mean=0.0, std=1.0):
    """Clips whose value is 1000 * clip + frame in every mel bin."""
    frames = torch.cat([1000.0 * i + torch.arange(n) for i, n in enumerate(lengths)])
    start = torch.tensor([0, *lengths]).cumsum(0)
    clip_id = [f"clip{i}" for i in range(len(lengths))]
    return Features(frames[:, None].repeat(1, 64).half(), start, clip_id, LOG_MEL, mean, std)


def crops(source, sampler, first_step=0):
    """All crops of a sampler, through tensors that stay in place, as in training."""
    clips = torch.zeros(sampler.clip.shape[1], dtype=torch.long)
    batch = source.empty_batch(sampler.clip.shape[1])
    result = []
    for clip, content in source.batches(sampler, first_step):
        clips.copy_(clip, non_blocking=True)
        batch.copy_(content, non_blocking=True)
        result.append((clips.clone(), source.crops(clips, batch)))
    return result


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("kind", LOADERS)
def test_crops_are_those_of_the_sampler_written_out(features, kind):
    frames = features.read_frames(CPU).float().numpy()
    actual = crops(kind(features, 16, CPU), SAMPLER)
    assert len(actual) == len(SAMPLER.clip) == 3
    for (clips, batch), clip_row, draw_row in zip(actual, SAMPLER.clip, SAMPLER.draw, strict=True):
        assert torch.equal(clips, clip_row)
        for crop, clip, draw in zip(batch, clip_row, draw_row, strict=True):
            start, end = features.start[clip : clip + 2].tolist()
            slack = max(end - start - 16, 0)
            first = start + int(float(draw) * (slack + 1))
            expected = np.full((16, 64), np.float16(-15.942385), np.float32)  # silence
            expected[: min(end - first, 16)] = frames[first : min(first + 16, end)]
            torch.testing.assert_close(crop, torch.from_numpy((expected.T - 1.5) / 2.5))


def test_the_three_loaders_give_exactly_the_same(features):
    features = replace(features, mean=-0.8112345, std=4.6123)  # statistics that round
    reference, *others = (
        [crop for _, crop in crops(k(features, 16, CPU), SAMPLER)] for k in LOADERS
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(reference, other, strict=True))


@pytest.mark.parametrize("kind", [DeviceLoader, HostLoader])
def test_a_short_clip_is_followed_by_silence_not_by_its_neighbour(kind):
    source = kind(in_memory(10, 200, mean=3.0, std=2.0), 96, CPU)
    sampler = EpochSampler(torch.tensor([[0]]), torch.tensor([[0.7]]))
    ((_, (crop,)),) = crops(source, sampler)
    torch.testing.assert_close(crop[0, :10], (torch.arange(10.0) - 3) / 2)
    silence = torch.tensor(-15.942385).half().float()  # as a shard holds it
    torch.testing.assert_close(crop[:, 10:], ((silence - 3) / 2).expand(64, 86))


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("first_step", [1, 17, 24, 25])
def test_an_epoch_begun_in_the_middle_has_the_rest_of_its_crops(features, kind, first_step):
    sampler = sample_epoch(9, 1, 0, 0)
    sampler = EpochSampler(sampler.clip.repeat(3, 1)[:25], torch.rand(25, 1, generator=Generator()))
    source = kind(features, 16, CPU)
    whole, rest = crops(source, sampler), crops(source, sampler, first_step)
    assert len(whole) == 25
    for (clip, crop), (clip_again, crop_again) in zip(whole[first_step:], rest, strict=True):
        assert torch.equal(clip, clip_again) and torch.equal(crop, crop_again)


@pytest.mark.parametrize("kind", LOADERS)
def test_the_shares_of_two_processes_give_the_crops_of_the_whole(features, kind):
    whole = crops(kind(features, 16, CPU), SAMPLER)
    parts = [crops(kind(features, 16, CPU), SAMPLER.share(rank, 2)) for rank in range(2)]
    for (_, expected), (_, left), (_, right) in zip(whole, *parts, strict=True):
        assert torch.equal(expected, torch.cat([left, right]))


@pytest.mark.parametrize("kind", STREAM_LOADERS)
def test_batches_stay_in_order_and_bounded_however_long_each_takes(features, kind, monkeypatch):
    source, sampler = kind(features, 16, CPU), sample_epoch(9, 1, 0, 0)
    sampler = EpochSampler(sampler.clip.repeat(4, 1), sampler.draw.repeat(4, 1))
    read, begun = source._read, []

    def slow(clip, draw, out):
        begun.append(clip)
        time.sleep(0.002 * (len(begun) % 5))
        read(clip, draw, out)

    monkeypatch.setattr(source, "_read", slow)
    expected = [crop for _, crop in crops(kind(features, 16, CPU), sampler)]
    for step, (clip, frames) in enumerate(source.batches(sampler)):
        assert len(begun) <= step + 1 + loader.AHEAD
        assert torch.equal(source.crops(clip, frames), expected[step])
    assert len(begun) == 36
    assert source.wait_s > 0


@pytest.mark.parametrize("kind", STREAM_LOADERS)
def test_stopping_early_leaves_no_thread_and_reads_no_further(features, kind):
    source = kind(features, 16, CPU)
    sampler = EpochSampler(SAMPLER.clip.repeat(100, 1), SAMPLER.draw.repeat(100, 1))
    batches = source.batches(sampler)
    next(batches)
    assert threads()
    batches.close()
    assert not threads()


@pytest.mark.parametrize("kind", STREAM_LOADERS)
def test_a_consumer_that_raises_leaves_no_thread(features, kind):
    source = kind(features, 16, CPU)
    with pytest.raises(KeyError):
        for _ in source.batches(SAMPLER):
            raise KeyError("of the consumer")
    assert not threads()
    assert len(crops(source, SAMPLER)) == 3  # and the loader still works


def test_two_passes_may_overlap(features):
    source = DiskLoader(features, 16, CPU)
    first = source.batches(SAMPLER)
    next(first)
    assert len(list(source.batches(SAMPLER))) == 3
    assert len(list(first)) == 2


def test_a_shard_that_shrinks_while_it_is_read_stops_the_consumer(features):
    source = DiskLoader(features, 16, CPU)
    path, offset = features.frames[2].path, features.frames[2].offset
    with path.open("r+b") as file:
        file.truncate(offset + 1000)
    with pytest.raises(ValueError, match=r"00002\.h5 ends before its 53 frames do.*dvc pull"):
        crops(source, SAMPLER)
    assert not threads()


def test_an_error_of_the_disk_names_the_file(features):
    source = DiskLoader(features, 16, CPU)
    write_only = os.open(features.frames[0].path, os.O_WRONLY)
    os.dup2(write_only, source.descriptors[0])
    os.close(write_only)
    with pytest.raises(OSError, match=r"00000\.h5"):
        crops(source, SAMPLER)


def test_reads_that_come_in_pieces_are_put_together(features, monkeypatch):
    source, preadv = DiskLoader(features, 16, CPU), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: preadv(fd, [to[0][:100]], at))
    file, out = features.frames[0], np.zeros((47, 64), np.float16)
    loader.read_at(source.descriptors[0], file.offset, out, file)
    np.testing.assert_array_equal(out, features.read_frames(CPU)[:47])


def test_files_are_closed_with_the_loader(features):
    source = DiskLoader(features, 16, CPU)
    descriptors = source.descriptors
    assert len(descriptors) == len(LENGTHS)
    del source
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_more_shards_than_files_may_be_open_raise_the_limit(features, monkeypatch):
    limits = []
    monkeypatch.setattr(loader.resource, "getrlimit", lambda which: (64, 4096))
    monkeypatch.setattr(loader.resource, "setrlimit", lambda which, limit: limits.append(limit))
    DiskLoader(features, 16, CPU)
    assert limits == [(len(LENGTHS) + loader.SPARE_FILES, 4096)]


def test_features_in_memory_cannot_be_read_from_the_disk():
    with pytest.raises(ValueError, match="in memory"):
        DiskLoader(in_memory(20), 16, CPU)


@pytest.mark.parametrize(
    ("memory_free", "gpu_free", "kind"),
    [
        (2.1, 2.1, DeviceLoader),
        (0.1, 2.1, DeviceLoader),
        (2.1, 1.9, HostLoader),
        (1.9, 1.9, DiskLoader),
    ],
)
def test_auto_takes_the_first_memory_that_stays_half_free(
    features, monkeypatch, caplog, memory_free, gpu_free, kind
):
    """Free memory in multiples of the features' size."""
    for cls in LOADERS:  # no GPU is needed to choose
        monkeypatch.setattr(loader, cls.__name__, lambda f, n, _, cls=cls: cls(f, n, CPU))
    size = features.nbytes
    monkeypatch.setattr(loader, "available_memory", lambda: int(memory_free * size))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gpu_free * size), 0))
    with caplog.at_level(logging.INFO):
        assert type(choose_loader(features, 16, torch.device("cuda"), "auto")) is kind
    assert len(caplog.messages) == 1 and "GB" in caplog.messages[0]


def test_auto_on_a_cpu_counts_the_processes_that_share_the_memory(features, monkeypatch):
    monkeypatch.setattr(loader, "available_memory", lambda: 5 * features.nbytes)
    kinds = [type(choose_loader(features, 16, CPU, "auto", n)) for n in (1, 2, 3)]
    assert kinds == [DeviceLoader, DeviceLoader, DiskLoader]


@pytest.mark.parametrize(("where", "kind"), [("device", DeviceLoader), ("host", HostLoader)])
def test_a_memory_asked_for_by_name_is_taken(features, monkeypatch, where, kind):
    monkeypatch.setattr(loader, "available_memory", lambda: 0)
    assert type(choose_loader(features, 16, CPU, where)) is kind


def test_the_limits_of_a_jobs_control_groups_count(tmp_path):
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "job" / "step").mkdir(parents=True)
    (root / "job" / "memory.max").write_text("4096\n")
    (root / "job" / "step" / "memory.max").write_text("max\n")
    groups.write_text("4:memory:/old\n0::/job/step\n")
    assert loader.group_limits(groups, root) == [4096]
    assert loader.group_limits(tmp_path / "absent", root) == []
