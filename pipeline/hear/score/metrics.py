"""hear-eval-kit's metrics: its own functions for testing, faster equal ones for validation.

Accuracies and mean average precision, which validate most tasks, are computed for all classifiers
at once, on the device of the logits. Event-based scores always come from `event_scores`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from heareval.score import EventBasedScore, available_scores
from jaxtyping import Float, Integer
from torch import Tensor

from pipeline.hear.score.event_scores import EventScore

ACCURACIES = {"top1_acc": None, "pitch_acc": None, "chroma_acc": 12}  # modulus of the classes


class Metrics:
    """The metrics of a task, the first of which is its score."""

    def __init__(self, names: Sequence[str], vocabulary: Sequence[str]) -> None:
        index = {label: i for i, label in enumerate(vocabulary)}
        functions = {name: available_scores[name](label_to_idx=index) for name in names}
        self.name = names[0]
        self.maximize = bool(functions[self.name].maximize)
        self.functions: dict[str, Any] = {
            name: EventScore(**each.params) if isinstance(each, EventBasedScore) else each
            for name, each in functions.items()
        }

    def primary(self, predictions: Any, targets: Any) -> float:
        """Return the first metric by hear-eval-kit's function."""
        value = self.functions[self.name](predictions, targets)
        return float(value[0][1] if isinstance(value, tuple) else value)

    def primary_of_all(
        self, probabilities: Float[Tensor, "G N C"], y: Integer[Tensor, "N C"]
    ) -> list[float]:
        """Return the first metric of each classifier of a scene task."""
        fast: dict[str, Callable[..., Tensor]] = {"mAP": mean_average_precision} | {
            name: partial(accuracy, modulus=modulus) for name, modulus in ACCURACIES.items()
        }
        if self.name in fast:
            return [float(value) for value in fast[self.name](probabilities, y).tolist()]
        targets = y.cpu().numpy()
        return [self.primary(each.cpu().numpy(), targets) for each in probabilities]

    def test(self, predictions: Any, targets: Any) -> dict[str, float]:
        """Return all metrics with hear-eval-kit's names, `test_score` first."""
        scores: dict[str, float] = {}
        for name, function in self.functions.items():
            value = function(predictions, targets)
            parts: Mapping[str, float] = dict(value) if isinstance(value, tuple) else {}
            scores[f"test_{name}"] = float(value[0][1] if parts else value)
            scores |= {f"test_{name}_{part}": float(number) for part, number in parts.items()}
        return {"test_score": scores[f"test_{self.name}"], **scores}


def accuracy(
    probabilities: Float[Tensor, "G N C"], y: Integer[Tensor, "N C"], modulus: int | None
) -> Float[Tensor, " G"]:
    """Return the share of rows whose most probable class is their first label, modulo `modulus`."""
    predicted, expected = probabilities.argmax(dim=2), y.argmax(dim=1)
    if modulus:
        predicted, expected = predicted % modulus, expected % modulus
    return (predicted == expected).sum(dim=1).double() / len(y)


def mean_average_precision(
    probabilities: Float[Tensor, "G N C"], y: Integer[Tensor, "N C"]
) -> Float[Tensor, " G"]:
    """Return hear-eval-kit's mean average precision, in which a class without rows counts as 0.

    A class's average precision is the mean, over its rows, of the precision among all rows that are
    at least as probable.
    """
    ranked, order = probabilities.transpose(1, 2).contiguous().sort(dim=2, descending=True)
    relevant = y.T[torch.arange(y.shape[1], device=y.device)[:, None], order].double()  # [G, C, N]
    rank = torch.arange(1, len(y) + 1, device=y.device)
    is_last = torch.ones_like(ranked, dtype=torch.bool)  # of equally probable rows
    is_last[..., :-1] = ranked[..., 1:] != ranked[..., :-1]
    tie_rank = torch.where(is_last, rank, len(y)).flip(2).cummin(dim=2).values.flip(2)
    precision = relevant.cumsum(dim=2).gather(2, tie_rank - 1) / tie_rank
    return ((precision * relevant).sum(dim=2) / relevant.sum(dim=2).clamp(min=1)).mean(dim=1)
