"""Stage `probe <task>`: quick scores of every encoder that pre-training has kept.

Reads   data/hear/<task> (never its test split), data/random, data/pretrain with its snapshots
Writes  reports/probe/<task>.csv   epoch, knn, linear: scores on the validation split
Params  probe.neighbors, probe.c, hear.normalization, hear.window_ms, hear.hop_ms
"""

import logging
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from pipeline import checkpoint, hear_api, params, probe
from pipeline.device import choose_device
from pipeline.embeddings import HearModule, check_sample_rate
from pipeline.hear_tasks import read_task
from pipeline.params.data import ComputeParams
from pipeline.stage import Stage, arguments, run

logger = logging.getLogger(__name__)

PRETRAIN, RANDOM = Path("data/pretrain"), Path("data/random")


def main(stage: Stage, name: str) -> None:
    """Run the stage."""
    task = read_task(Path("data/hear", name))
    encoders = probe.kept_encoders(PRETRAIN, RANDOM)
    options = {
        "window_ms": stage.value("hear.window_ms"),
        "hop_ms": stage.value("hear.hop_ms"),
        "normalization": stage.value("hear.normalization"),
    }
    classifiers = {"neighbors": stage.value("probe.neighbors"), "c": stage.value("probe.c")}
    multilabel = task.metadata.prediction_type == "multilabel"
    device = choose_device(params.load("compute", ComputeParams).device)
    rows = []
    with stage.output(f"reports/probe/{name}.csv", file=True) as table:
        for epoch, folder in encoders.items():
            sample_rate = checkpoint.read_settings(folder).logmel.sample_rate
            check_sample_rate(task, sample_rate, str(folder))
            model = hear_api.load_model(str(folder), **options).to(device)
            with TemporaryDirectory(dir=stage.work_folder()) as scratch:
                splits = probe.embed_splits(task, HearModule(hear_api, model), Path(scratch))
            scores = probe.score(*splits, multilabel=multilabel, **classifiers)
            rows.append({"epoch": epoch} | scores)
            logger.info("%s, epoch %d: %s", name, epoch, scores)
        pd.DataFrame(rows).to_csv(table, index=False)


if __name__ == "__main__":
    (name,) = arguments("<task>")
    run("probe", partial(main, name=name), name)
