"""Stage `probe <task>`: quick scores of every encoder that pre-training saved.

Reads   data/hear/<task> (never a test split; of a k-fold task the first fold validates),
        data/random, data/pretrained with its snapshots, reports/probed.json
Writes  reports/probe/<task>.csv   epoch, knn, linear: scores on the validation split; no rows if
        the task is not among those to be probed
Params  probe.neighbors, .inverse_l2; hear.mode, .normalization, .window_ms, .hop_ms, .edges,
        .layers, .mel_mean
"""

import json
import logging
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from pipeline.core import params
from pipeline.core.device import choose_device
from pipeline.core.settings import ComputeParams, cores
from pipeline.core.stage import Stage, arguments, run
from pipeline.encoders import checkpoint
from pipeline.hear import probe
from pipeline.hear.api import model
from pipeline.hear.api.statistics import task_statistics
from pipeline.hear.embed.embed import HearModule, check_sample_rate
from pipeline.hear.params import read_extraction
from pipeline.hear.tasks.task import read_task

logger = logging.getLogger(__name__)

SEED = 0  # of the dropout that `hear.mode = reference` leaves on
PROBED = Path("reports/probed.json")
PRETRAIN, RANDOM = Path("data/pretrained"), Path("data/random")


def main(stage: Stage, name: str) -> None:
    """Run the stage."""
    task = read_task(Path("data/hear", name))
    chosen = name in json.loads(PROBED.read_bytes())
    encoders = probe.encoder_folders(PRETRAIN, RANDOM) if chosen else {}
    extraction = read_extraction(stage)
    classifiers = {
        "neighbors": stage.value("probe.neighbors"),
        "inverse_l2": stage.value("probe.inverse_l2"),
    }
    multilabel = task.metadata.prediction_type == "multilabel"
    compute = params.load("compute", ComputeParams)
    device, workers = choose_device(compute.device), compute.local_workers or cores()
    log_mel, statistics = checkpoint.read_settings(PRETRAIN).logmel, None
    if chosen and extraction.normalization == "task":
        statistics = task_statistics(task, log_mel, workers)
    rows = []
    with stage.output(f"reports/probe/{name}.csv", file=True) as table:
        for epoch, folder in encoders.items():
            sample_rate = checkpoint.read_settings(folder).logmel.sample_rate
            check_sample_rate(task, sample_rate, str(folder))
            loaded = model.load_model(str(folder), **extraction.model_dump(), statistics=statistics)
            module = HearModule(model, loaded.to(device))
            torch.manual_seed(SEED)
            with TemporaryDirectory(dir=stage.work_folder()) as scratch:
                splits = probe.embed_splits(task, module, Path(scratch), workers)
            scores = probe.score(*splits, multilabel=multilabel, **classifiers)
            rows.append({"epoch": epoch} | scores)
            logger.info("%s, epoch %d: %s", name, epoch, scores)
        pd.DataFrame(rows, columns=probe.COLUMNS).to_csv(table, index=False)


if __name__ == "__main__":
    (name,) = arguments("<task>")
    run("probe", partial(main, name=name), name)
