"""Stage `embed <task> <model>`: embeddings of one HEAR task by one encoder.

Reads   data/hear/<task>, data/<model> (model is `pretrain` or `random`)
Writes  data/embeddings/<model>/<task>
Params  hear.normalization, hear.window_ms, hear.hop_ms
"""

import sys
from functools import partial
from pathlib import Path

from pipeline import hear_api, params
from pipeline.device import choose_device
from pipeline.embeddings import HearModule, write_embeddings
from pipeline.hear_tasks import read_task
from pipeline.params.data import ComputeParams
from pipeline.stage import Stage, run


def main(stage: Stage, name: str, model_name: str) -> None:
    """Run the stage."""
    task = read_task(Path("data/hear", name))
    model = hear_api.load_model(
        f"data/{model_name}",
        window_ms=stage.value("hear.window_ms"),
        hop_ms=stage.value("hear.hop_ms"),
        normalization=stage.value("hear.normalization"),
    )
    model.to(choose_device(params.load("compute", ComputeParams).device))
    with stage.output(f"data/embeddings/{model_name}/{name}") as folder:
        write_embeddings(task, HearModule(hear_api, model), folder)


if __name__ == "__main__":
    name, model_name = sys.argv[1:]
    run("embed", partial(main, name=name, model_name=model_name), name, model_name)
