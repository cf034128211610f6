"""Run by test_distributed under torchrun: every case on this process's half of the batch."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from test_distributed import CASES, compute, uneven_crops

from pipeline.pretrain import distributed
from pipeline.pretrain.augment import standardize

with distributed.process_group(torch.device("cpu")):
    half = slice(8 * distributed.rank(), 8 * distributed.rank() + 8)
    results = {name: compute(name, half) for name in CASES}
    results["pre_post_norm"] = standardize(uneven_crops()[half])
    torch.save(results, Path(sys.argv[1]) / f"{distributed.rank()}.pt")
