"""hear-eval-kit's predictions with other random numbers: python -m pipeline.heareval_seed SEED ...

hear-eval-kit has one seed, 42, and no option for it. Here the same program draws initial weights
and dropout by another one; which settings it tries, and in which order, stays the same.
"""

import sys
from typing import Any


def main() -> None:
    """Run `heareval.predictions.runner` with the other arguments."""
    import torch
    from heareval.predictions import runner, task_predictions

    seed = int(sys.argv.pop(1))
    seed_everything = task_predictions.seed_everything

    def reseed(first: int, **options: Any) -> None:
        seed_everything(first, **options)
        torch.manual_seed(seed)

    task_predictions.seed_everything = reseed
    runner.runner()


if __name__ == "__main__":
    main()
