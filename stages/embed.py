"""Stage `embed <task> <model>`: embeddings of one HEAR task by one model.

Reads   data/hear/<task>, data/<model> (a model of `hear.models`)
Writes  data/embeddings/<model>/<task>
Params  hear.mode, .normalization, .window_ms, .hop_ms, .edges, .layers, .mel_mean
"""

from functools import partial
from pathlib import Path

import torch

from pipeline.core import params
from pipeline.core.device import choose_device
from pipeline.core.settings import ComputeParams, cores
from pipeline.core.stage import Stage, arguments, run
from pipeline.encoders import checkpoint
from pipeline.hear.api.statistics import task_statistics
from pipeline.hear.embed.cache import open_cache, shares_audio
from pipeline.hear.embed.embed import check_sample_rate, write_embeddings
from pipeline.hear.models import registry
from pipeline.hear.params import BASELINES, TRAINED, read_extraction
from pipeline.hear.tasks.task import read_task

SEED = 0  # of the dropout that `hear.mode = reference` leaves on


def main(stage: Stage, name: str, model_name: str) -> None:
    """Run the stage."""
    task = read_task(Path("data/hear", name))
    extraction = read_extraction(stage)
    compute = params.load("compute", ComputeParams)
    workers = compute.local_workers or cores()
    folder, statistics = Path("data", model_name), None
    if model_name in TRAINED:
        log_mel = checkpoint.read_settings(folder).logmel
        check_sample_rate(task, log_mel.sample_rate, str(folder))
        if extraction.normalization == "task":
            statistics = task_statistics(task, log_mel, workers)
    module = registry.load_hear_module(model_name, folder, extraction, statistics)
    has_own_rate = model_name not in (*TRAINED, "mel")  # not that of logmel
    name_and_api = f"{folder} ({module.api.__name__})"
    check_sample_rate(task, module.sample_rate, name_and_api, has_own_rate)
    module.model.to(choose_device(compute.device))
    torch.manual_seed(SEED)
    with stage.output(f"data/embeddings/{model_name}/{name}") as embeddings:
        cache = None
        if shares_audio(name) and not module.batch_dependent:
            settings = {"model": model_name, "statistics": statistics, **extraction.model_dump()}
            cache = open_cache(folder, settings, compute)
        write_embeddings(task, module, embeddings, workers, cache)


if __name__ == "__main__":
    name, model_name = arguments("<task>", "|".join((*TRAINED, *BASELINES)))
    run("embed", partial(main, name=name, model_name=model_name), name, model_name)
