"""Scores of classifiers from their logits, for validation and test."""

import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from pipeline.hear.score.data import TaskData, reference_events
from pipeline.hear.score.ensemble import row_losses
from pipeline.hear.score.events import (
    THRESHOLD,
    Event,
    Postprocessing,
    best_postprocessing,
    find_events,
)
from pipeline.hear.score.metrics import Metrics
from pipeline.hear.score.protocol import postprocessings
from pipeline.hear.tasks.task import METADATA


class Scorer:
    """Scores of a task; `y` and `target` are on the device of the logits."""

    def __init__(self, data: TaskData, device: torch.device) -> None:
        """Move a task's labels to a device.

        Raises:
            ValueError: there are several postprocessings, but they are not compared.
        """
        metadata = data.task.metadata
        self.data = data
        self.metrics = Metrics(metadata.evaluation, data.task.vocabulary)
        self.multiclass = metadata.prediction_type == "multiclass"
        self.by_score = metadata.use_scoring_for_early_stopping
        self.maximize = self.metrics.maximize and self.by_score
        self.postprocessings = [tuple(each.items()) for each in postprocessings(metadata)]
        if data.frames and not self.by_score and len(self.postprocessings) != 1:
            raise ValueError(
                f"{METADATA} of {metadata.task_name}: use_scoring_for_early_stopping is false, so "
                "postprocessings are not compared, but evaluation_params."
                f"event_postprocessing_grid makes {len(self.postprocessings)}. Leave one choice of "
                "each setting."
            )
        self.y = torch.from_numpy(data.y).to(device)
        self.target = self.y.argmax(dim=1) if self.multiclass else self.y

    def loss(self, logits: Float[Tensor, "G N C"], split: str) -> Float[Tensor, " G"]:
        """Return the mean loss of each classifier on a split."""
        target = self.target[self.data.rows_of(split)]
        return row_losses(logits.transpose(1, 2), target, self.multiclass).mean(dim=1)

    def probabilities(self, logits: Float[Tensor, "G N C"]) -> Float[Tensor, "G N C"]:
        """Return the softmax over the classes, or their sigmoid if a row may have several."""
        return logits.softmax(dim=2) if self.multiclass else logits.sigmoid()

    def validate(
        self, logits: Float[Tensor, "G N C"], split: str
    ) -> list[tuple[float, Postprocessing]]:
        """Return each classifier's validation score and best postprocessing."""
        if not self.by_score:
            first = self.postprocessings[0] if self.data.frames else ()
            return [(value, first) for value in self.loss(logits, split).tolist()]
        probabilities = self.probabilities(logits)
        if self.data.frames:
            active = (probabilities > THRESHOLD).cpu().numpy()
            return [self._validate_events(each, split) for each in active]
        values = self.metrics.primary_of_all(probabilities, self.y[self.data.rows_of(split)])
        return [(value, ()) for value in values]

    def _validate_events(
        self, active: Bool[ndarray, "N C"], split: str
    ) -> tuple[float, Postprocessing]:
        reference = reference_events(self.data.task, split)
        values = {
            each: self.metrics.primary(self._events(active, split, each), reference)
            for each in self.postprocessings
        }
        best = best_postprocessing(values)
        return values[best], best

    def _events(
        self, active: Bool[ndarray, "N C"], split: str, postprocessing: Postprocessing
    ) -> dict[str, list[Event]]:
        frames, vocabulary = self.data.frames[split], self.data.task.vocabulary
        return find_events(active, frames, vocabulary, **dict(postprocessing))

    def test(
        self, logits: Float[Tensor, "1 N C"], split: str, postprocessing: Postprocessing
    ) -> dict[str, float]:
        """Return loss and metrics of one classifier under hear-eval-kit's names."""
        probabilities = self.probabilities(logits)[0].cpu().numpy()
        if self.data.frames:
            events = self._events(probabilities > THRESHOLD, split, postprocessing)
            metrics = self.metrics.test(events, reference_events(self.data.task, split))
        else:
            metrics = self.metrics.test(probabilities, self.data.y[self.data.rows_of(split)])
        return {"test_loss": self.loss(logits, split)[0].item(), **metrics}
