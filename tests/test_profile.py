"""What a step does, by the profiler: nothing once per clip, no wait for a number, one layout.

The same code runs on a GPU, where a wait within the step would also make its capture fail
(tests/test_fused.py).
"""

from collections import Counter

import pytest
import torch
from synthetic_training import CPU, features, settings
from torch.profiler import ProfilerActivity, profile

from pipeline.pretrain.loop import Trainer

WAITS = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}


def trainer(batch_size, **changes):
    run = settings(**changes, pretrain__batch_size=batch_size, pretrain__log_every=1000)
    training = Trainer(run, features(), CPU)
    training.model.train()
    return training


def operations(training):
    """Names and counts of the operations of one step, after some others."""
    batch_size = training.settings.pretrain.batch_size
    batch = torch.arange(batch_size), torch.linspace(0, 0.99, batch_size)
    for _ in range(3):
        training.train_step(*batch)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:
        training.train_step(*batch)
    return Counter({event.key: event.count for event in record.key_averages()})


@pytest.mark.parametrize(
    "changes", [{}, {"augment__noise": "additive", "augment__pre_post_norm": True}]
)
def test_a_step_does_the_same_operations_whatever_the_number_of_clips(changes):
    few, many = (operations(trainer(size, **changes)) for size in (16, 48))
    assert few == many


def test_a_step_waits_for_no_number():
    counts = operations(trainer(16))
    assert not WAITS & set(counts)
    assert counts["aten::mm"] > 0  # the profiler has seen the step


@pytest.mark.parametrize("encoder", ["audiontt", "vitc"])
def test_convolutions_read_and_write_one_layout_without_copies(encoder):
    training = trainer(16, encoder=encoder)
    seen = []

    def look(module, args, out):
        tensors = (args[0], module.weight, out)
        seen.append([x.is_contiguous(memory_format=torch.channels_last) for x in tensors])

    for module in training.model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(look)
    training.train_step(torch.arange(16), torch.linspace(0, 0.99, 16))
    assert len(seen) >= 4
    assert all(map(all, seen))
