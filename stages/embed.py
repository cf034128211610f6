"""Stage `embed <task> <model>`: embeddings of one HEAR task by one encoder.

Reads   data/hear/<task>, data/<model> (model is `pretrain` or `random`)
Writes  data/embeddings/<model>/<task>
Params  hear.normalization, hear.window_ms, hear.hop_ms
"""

from functools import partial
from pathlib import Path

from pipeline import checkpoint, hear_api, params
from pipeline.device import choose_device
from pipeline.embeddings import HearModule, check_sample_rate, write_embeddings
from pipeline.hear_tasks import read_task
from pipeline.params.data import ComputeParams
from pipeline.stage import Stage, arguments, run


def main(stage: Stage, name: str, model_name: str) -> None:
    """Run the stage."""
    task = read_task(Path("data/hear", name))
    folder = f"data/{model_name}"
    check_sample_rate(task, checkpoint.read_settings(Path(folder)).logmel.sample_rate, folder)
    model = hear_api.load_model(
        folder,
        window_ms=stage.value("hear.window_ms"),
        hop_ms=stage.value("hear.hop_ms"),
        normalization=stage.value("hear.normalization"),
    )
    model.to(choose_device(params.load("compute", ComputeParams).device))
    with stage.output(f"data/embeddings/{model_name}/{name}") as embeddings:
        write_embeddings(task, HearModule(hear_api, model), embeddings)


if __name__ == "__main__":
    name, model_name = arguments("<task>", "pretrain|random")
    run("embed", partial(main, name=name, model_name=model_name), name, model_name)
