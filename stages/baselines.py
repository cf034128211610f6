"""Stage `baselines`: describe the models of the evaluation that are not trained here.

Writes  data/mel, data/crepe, data/wav2vec2, data/module: one model.json each
Params  hear.models, hear.crepe, hear.wav2vec2, hear.module, logmel
"""

from contextlib import ExitStack

from pipeline.core.params import check
from pipeline.core.stage import Stage, arguments, run
from pipeline.features.params import LogMelParams
from pipeline.hear.models import baselines
from pipeline.hear.params import BASELINES, BaselineParams


def main(stage: Stage) -> None:
    """Run the stage."""
    log_mel = stage.load("logmel", LogMelParams)
    settings = {
        "models": stage.value("hear.models"),
        "crepe": stage.value("hear.crepe"),
        "wav2vec2": stage.value("hear.wav2vec2"),
        "module": stage.value("hear.module"),
    }
    params = check(settings, BaselineParams, prefix="hear")
    baselines.require_installed(params)
    with ExitStack() as outputs:
        for name in BASELINES:
            folder = outputs.enter_context(stage.output(f"data/{name}"))
            baselines.write(baselines.describe(name, params, log_mel), folder)


if __name__ == "__main__":
    run("baselines", main, *arguments())
