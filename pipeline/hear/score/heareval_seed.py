"""hear-eval-kit's predictions with another seed.

    python -m pipeline.hear.score.heareval_seed SEED ...

hear-eval-kit has one seed, 42, and no option for it. Here the same program draws initial weights
and dropout by another one; which settings it tries, and in which order, stays the same.
"""

import sys
from typing import Any


def main() -> None:
    """Run `heareval.predictions.runner` with the other arguments."""
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
