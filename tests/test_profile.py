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
    made = Trainer(run, features(), CPU)
    made.model.train()
    return made


def operations(made):
    """Names and counts of the operations of one step, after some others."""
    batch_size = made.settings.pretrain.batch_size
    batch = torch.arange(batch_size), torch.linspace(0, 0.99, batch_size)
    for _ in range(3):
        made.train_step(*batch)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:
        made.train_step(*batch)
    return Counter({event.key: event.count for event in record.key_averages()})


@pytest.mark.parametrize(
    "changes", [{}, {"augment__noise": "additive", "augment__pre_post_norm": True}]
)
def test_a_step_does_the_same_operations_whatever_the_number_of_clips(changes):
    few, many = (operations(trainer(size, **changes)) for size in (16, 48))
    assert few == many


def test_a_step_waits_for_no_number():
    found = operations(trainer(16))
    assert not WAITS & set(found)
    assert found["aten::mm"] > 0  # the profiler has seen the step


@pytest.mark.parametrize("encoder", ["audiontt", "vitc"])
def test_convolutions_read_and_write_one_layout_without_copies(encoder):
    made = trainer(16, encoder=encoder)
    seen = []

    def look(module, args, out):
        tensors = (args[0], module.weight, out)
        seen.append([x.is_contiguous(memory_format=torch.channels_last) for x in tensors])

    for module in made.model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(look)
    made.train_step(torch.arange(16), torch.linspace(0, 0.99, 16))
    assert len(seen) >= 4
    assert all(map(all, seen))
