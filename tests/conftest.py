"""Settings of the whole suite."""

import signal

import torch

torch.set_num_threads(1)  # the suite runs one process per core; more threads only compete
# A shell that runs the suite in the background lets it ignore Ctrl-C, and what it starts, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
