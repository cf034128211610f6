"""Mean and standard deviation of a HEAR task's log-mels, for `hear.normalization = task`."""

import math

import torch
from tqdm import tqdm

from pipeline.features.front_end import LogMel
from pipeline.features.params import LogMelParams
from pipeline.features.stats import Totals
from pipeline.hear.tasks.audio import read_clips
from pipeline.hear.tasks.task import Task


def task_statistics(task: Task, params: LogMelParams, workers: int = 1) -> tuple[float, float]:
    """Return mean and standard deviation of the log-mels of a task's training clips.

    In a k-fold task, all folds count, since each is mostly used for training. Clips shorter than an
    STFT window are padded with zeros.

    Raises:
        FileNotFoundError: an audio file is missing.
        ValueError: an audio file is invalid, or the log-mels are constant.
    """
    kfold = task.metadata.split_mode != "trainvaltest"
    splits = task.metadata.splits if kfold else ["train"]
    paths = [task.audio(params.sample_rate, s) / name for s in splits for name in task.labels[s]]
    log_mel, totals = LogMel(params), Totals()
    for wave in tqdm(
        read_clips(paths, workers), "statistics", len(paths), unit="clip", disable=None
    ):
        padded = torch.nn.functional.pad(
            torch.from_numpy(wave[0]), (0, max(0, log_mel.min_samples - len(wave[0])))
        )
        totals += Totals.from_array(log_mel(padded).numpy())
    if not totals.std > 0 or not math.isfinite(totals.std):
        raise ValueError(
            f"{task.name}: the log-mels of its training clips do not vary (standard deviation "
            f"{totals.std}), so they cannot normalize it. Set hear.normalization to dataset, or "
            "replace the audio."
        )
    return totals.mean, totals.std
