"""Seeds of independent random streams, all derived from `pretrain.seed`."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What draws random numbers."""

    WEIGHTS = 0
    DROPOUT = 1  # one for each process
    VIEWS = 2  # one for each process
    EPOCH = 3  # order and positions of an epoch's crops
    MASK = 4  # one for each step
    DIAGNOSTIC_CROPS = 5
    DIAGNOSTIC_VIEWS = 6
    DIAGNOSTIC_DROPOUT = 7


def derive_seed(seed: int, stream: Stream, *index: int) -> int:
    """Return the seed of a stream, of which there may be one for each process, epoch or step.

    A sum such as seed + rank would give two runs of neighbouring seeds the same streams.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(stream, *index))
    return int(sequence.generate_state(1, np.uint64)[0])
