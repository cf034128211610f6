"""Training of many classifiers at once, each until its validation score stops improving.

Each classifier is trained as in hear-eval-kit. An epoch takes the rows in stored order; its last
batch may be smaller. Every `check_val_every_n_epoch` epochs the validation split is scored, and the
state with the best score (the first, if tied) is kept. Training ends after `patience` validations
without improvement, after a score that is not finite, or at `max_epochs`. Scores are compared in
float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from pipeline.hear.score.batches import BatchRows, epoch_batches
from pipeline.hear.score.data import TaskData
from pipeline.hear.score.ensemble import EnsembleAdam, MLPEnsemble, State, initial_state
from pipeline.hear.score.events import Postprocessing
from pipeline.hear.score.protocol import Fold, Hyperparameters, is_better
from pipeline.hear.score.random_streams import RandomStreams
from pipeline.hear.score.scoring import Scorer

SHAPE = ("hidden_layers", "hidden_dim", "batch_size")  # equal for all classifiers of an ensemble


@dataclass
class Trial:
    """One classifier to train, and its best validation so far."""

    number: int  # of its random stream
    hparams: Hyperparameters
    fold: Fold
    epoch: int = -1  # of the best validation, from 0
    value: float = math.nan
    postprocessing: Postprocessing = ()
    state: State = field(default_factory=dict)
    waited: int = 0  # validations since the best
    history: list[float] = field(default_factory=list)  # all validations

    def improves(self, value: float, maximize: bool) -> bool:
        """Record a validation; return whether it is the best so far (the first always is)."""
        value = float(np.float32(value))
        first = not self.history
        self.history.append(value)
        if not first and not is_better(value, self.value, maximize):
            self.waited += 1
            return False
        self.waited = 0
        self.value = (-math.inf if maximize else math.inf) if math.isnan(value) else value
        return True

    @property
    def ended(self) -> bool:
        """Whether the last validation ends training."""
        return not math.isfinite(self.history[-1]) or self.waited >= self.hparams["patience"]


class EnsembleTrainer:
    """Trains the classifiers of one task on a device."""

    def __init__(
        self, data: TaskData, device: torch.device, dtype: torch.dtype, at_once: int
    ) -> None:
        """Move the task to the device.

        Args:
            dtype: of weights and activations.
            at_once: classifiers to train together; 0: all of one shape.
        """
        self.data = data
        self.device = device
        self.dtype = dtype
        self.at_once = at_once
        self.scorer = Scorer(data, device)
        self.x = torch.from_numpy(data.x).to(device)

    def fit(self, trials: Sequence[Trial], streams: RandomStreams) -> None:
        """Train classifiers and record their results in `trials`."""
        groups: dict[tuple[int, ...], list[Trial]] = {}
        for trial in trials:
            shape = tuple(trial.hparams[key] for key in SHAPE)
            groups.setdefault(shape, []).append(trial)
        for group in groups.values():
            size = self.at_once or len(group)
            for start in range(0, len(group), size):
                self._fit_ensemble(group[start : start + size], streams)

    def _fit_ensemble(self, trials: list[Trial], streams: RandomStreams) -> None:
        optimizer = EnsembleAdam(self._initial(trials, streams))
        rows = self._batches(trials)
        epochs = max(trial.hparams["max_epochs"] for trial in trials)
        for epoch in tqdm(range(epochs), desc=f"{len(trials)} classifiers", disable=None):
            for batch_rows in rows:
                batch = batch_rows.gather(self.x, self.scorer.target, self.dtype)
                optimizer.step(batch, self.scorer.multiclass, streams)
            unfinished = self._validate(optimizer.ensemble, trials, epoch)
            if not unfinished:
                return
            if len(unfinished) < len(trials):
                optimizer = optimizer.subset(unfinished)
                trials = [trials[i] for i in unfinished]
                rows = self._batches(trials)

    def _initial(self, trials: Sequence[Trial], streams: RandomStreams) -> MLPEnsemble:
        sizes = self.x.shape[1], self.scorer.y.shape[1]
        states = [
            initial_state(streams, trial.number, trial.hparams, *sizes, self.dtype)
            for trial in trials
        ]
        return MLPEnsemble.from_states(
            [trial.number for trial in trials],
            [trial.hparams for trial in trials],
            states,
            self.device,
        )

    def _batches(self, trials: Sequence[Trial]) -> list[BatchRows]:
        rows = [self.data.select(trial.fold.train) for trial in trials]
        return epoch_batches(rows, trials[0].hparams["batch_size"], self.device)

    def _validate(self, ensemble: MLPEnsemble, trials: Sequence[Trial], epoch: int) -> list[int]:
        """Validate the classifiers that are due; return the positions of those to train further."""
        every = [trial.hparams["check_val_every_n_epoch"] for trial in trials]
        due = [i for i, each in enumerate(every) if (epoch + 1) % each == 0]
        for name in dict.fromkeys(trials[i].fold.valid for i in due):
            members = [i for i in due if trials[i].fold.valid == name]
            scores = self.scorer.validate(self.logits(ensemble.subset(members), name), name)
            for member, (value, postprocessing) in zip(members, scores, strict=True):
                trial = trials[member]
                if trial.improves(value, self.scorer.maximize):
                    trial.epoch, trial.postprocessing = epoch, postprocessing
                    trial.state = ensemble.state(member)
        ended = {i for i in due if trials[i].ended}
        ended |= {i for i, trial in enumerate(trials) if epoch + 1 >= trial.hparams["max_epochs"]}
        return [i for i in range(len(trials)) if i not in ended]

    @torch.no_grad()
    def logits(self, ensemble: MLPEnsemble, split: str) -> Float[Tensor, "G N C"]:
        """Return the logits of classifiers for all rows of a split."""
        rows, size = self.data.rows[split], ensemble.grid[0]["batch_size"]
        parts = [
            ensemble.logits(self.x[start : min(start + size, rows.stop)].to(self.dtype))
            for start in range(rows.start, rows.stop, size)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2)

    def test(self, trial: Trial) -> tuple[dict[str, float], Float[Tensor, "N C"]]:
        """Return the best state's scores on the test split and its logits."""
        numbers, hparams, states = [trial.number], [trial.hparams], [trial.state]
        ensemble = MLPEnsemble.from_states(numbers, hparams, states, self.device)
        logits = self.logits(ensemble, trial.fold.test)
        return self.scorer.test(logits, trial.fold.test, trial.postprocessing), logits[0]
