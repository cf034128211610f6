"""Training of many classifiers at once, each until its validations no longer improve.

What hear-eval-kit does, for each classifier: an epoch takes the rows in stored order, in batches of
which the last may be smaller; every `check_val_every_n_epoch` epochs the validation split is
scored; the classifier with the best score is kept, the first of equals; training ends after
`patience` validations without an improvement, after a score that is not finite, or at `max_epochs`.
Scores are compared as float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from pipeline.hear.score.batches import Rows, batches
from pipeline.hear.score.data import TaskData
from pipeline.hear.score.ensemble import Stack, StackAdam, State, initial_state
from pipeline.hear.score.events import Postprocessing
from pipeline.hear.score.protocol import Conf, Split, better
from pipeline.hear.score.random_streams import Draws
from pipeline.hear.score.scoring import Scorer

STACKED = ("hidden_layers", "hidden_dim", "batch_size")  # equal in a stack


@dataclass
class Fit:
    """One classifier: what it is trained on, and its best validation."""

    number: int  # its name in `Draws`
    conf: Conf
    split: Split
    epoch: int = -1  # from 0
    value: float = math.nan
    postprocessing: Postprocessing = ()
    state: State = field(default_factory=dict)
    waited: int = 0  # validations since
    history: list[float] = field(default_factory=list)  # all validations

    def improves(self, value: float, maximize: bool) -> bool:
        """Note a validation and return whether it is the best so far; the first one always is."""
        value = float(np.float32(value))
        first = not self.history
        self.history.append(value)
        if not first and not better(value, self.value, maximize):
            self.waited += 1
            return False
        self.waited = 0
        self.value = (-math.inf if maximize else math.inf) if math.isnan(value) else value
        return True

    @property
    def ended(self) -> bool:
        """Whether the last validation ends the training."""
        return not math.isfinite(self.history[-1]) or self.waited >= self.conf["patience"]


class Trainer:
    """A task on a device."""

    def __init__(
        self, data: TaskData, device: torch.device, dtype: torch.dtype, at_once: int
    ) -> None:
        """Move the task to the device.

        Args:
            dtype: of weights and activations.
            at_once: classifiers that are trained together; 0: all that can be.
        """
        self.data = data
        self.device = device
        self.dtype = dtype
        self.at_once = at_once
        self.scorer = Scorer(data, device)
        self.x = torch.from_numpy(data.x).to(device)

    def fit(self, fits: Sequence[Fit], draws: Draws) -> None:
        """Train classifiers; their results are written into `fits`."""
        groups: dict[tuple[int, ...], list[Fit]] = {}
        for each in fits:
            groups.setdefault(tuple(each.conf[key] for key in STACKED), []).append(each)
        for group in groups.values():
            size = self.at_once or len(group)
            for start in range(0, len(group), size):
                self._fit_stack(group[start : start + size], draws)

    def _fit_stack(self, fits: list[Fit], draws: Draws) -> None:
        optimizer = StackAdam(self._initial(fits, draws))
        rows = self._batches(fits)
        epochs = max(fit.conf["max_epochs"] for fit in fits)
        for epoch in tqdm(range(epochs), desc=f"{len(fits)} classifiers", disable=None):
            for each in rows:
                batch = each.of(self.x, self.scorer.target, self.dtype)
                optimizer.step(batch, self.scorer.multiclass, draws)
            left = self._validate(optimizer.stack, fits, epoch)
            if not left:
                return
            if len(left) < len(fits):
                optimizer = optimizer.of_some(left)
                fits = [fits[i] for i in left]
                rows = self._batches(fits)

    def _initial(self, fits: Sequence[Fit], draws: Draws) -> Stack:
        sizes = self.x.shape[1], self.scorer.y.shape[1]
        states = [initial_state(draws, f.number, f.conf, *sizes, self.dtype) for f in fits]
        return Stack.of([f.number for f in fits], [f.conf for f in fits], states, self.device)

    def _batches(self, fits: Sequence[Fit]) -> list[Rows]:
        rows = [self.data.select(fit.split.train) for fit in fits]
        return batches(rows, fits[0].conf["batch_size"], self.device)

    def _validate(self, stack: Stack, fits: Sequence[Fit], epoch: int) -> list[int]:
        """Validate those whose turn it is, and return the places of those that go on."""
        every = [fit.conf["check_val_every_n_epoch"] for fit in fits]
        due = [i for i, each in enumerate(every) if (epoch + 1) % each == 0]
        for name in dict.fromkeys(fits[i].split.valid for i in due):
            members = [i for i in due if fits[i].split.valid == name]
            found = self.scorer.validate(self.logits(stack.some(members), name), name)
            for member, (value, postprocessing) in zip(members, found, strict=True):
                fit = fits[member]
                if fit.improves(value, self.scorer.maximize):
                    fit.epoch, fit.postprocessing = epoch, postprocessing
                    fit.state = stack.state(member)
        ended = {i for i in due if fits[i].ended}
        ended |= {i for i, fit in enumerate(fits) if epoch + 1 >= fit.conf["max_epochs"]}
        return [i for i in range(len(fits)) if i not in ended]

    @torch.no_grad()
    def logits(self, stack: Stack, split: str) -> Float[Tensor, "G N C"]:
        """Return the logits of classifiers for all rows of a split."""
        rows, size = self.data.rows[split], stack.confs[0]["batch_size"]
        parts = [
            stack.logits(self.x[start : min(start + size, rows.stop)].to(self.dtype))
            for start in range(rows.start, rows.stop, size)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2)

    def test(self, fit: Fit) -> tuple[dict[str, float], Float[Tensor, "N C"]]:
        """Return the best state's scores of the test split, and its logits."""
        stack = Stack.of([fit.number], [fit.conf], [fit.state], self.device)
        logits = self.logits(stack, fit.split.test)
        return self.scorer.test(logits, fit.split.test, fit.postprocessing), logits[0]
