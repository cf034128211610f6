"""Settings of the whole suite."""

import torch

torch.set_num_threads(1)  # the suite runs one process per core; more threads only compete
