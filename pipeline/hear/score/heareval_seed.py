"""Run hear-eval-kit's predictions with a seed other than its own.

    python -m pipeline.hear.score.heareval_seed SEED <arguments of heareval.predictions.runner>

hear-eval-kit calls `seed_everything(42)` before each task and has no option for another seed.
Python's generator must keep this one, since it shuffles the grid of hyperparameters; only torch's,
which draws initial weights and dropout, may differ between repetitions. This module therefore
replaces `seed_everything` by a function that calls it and then seeds torch again. It runs as a
process of its own, so nothing else sees the replacement.
"""

import sys
from typing import Any


def main() -> None:
    """Seed torch by the first argument and pass the others to `heareval.predictions.runner`."""
    seed = int(sys.argv.pop(1))
    from heareval.predictions import runner, task_predictions

    seed_everything = task_predictions.seed_everything

    def reseed(first: int, **options: Any) -> None:
        import torch

        seed_everything(first, **options)
        torch.manual_seed(seed)

    task_predictions.seed_everything = reseed
    runner.runner()


if __name__ == "__main__":
    main()
