"""The models that the evaluation compares (`hear.models`), each with the HEAR API.

    pretrained, random      encoders of the stage pretrain: `pipeline.hear.api.model`
    mel, crepe, wav2vec2    modules of this package
    module                  any installed module

A module of this package has `load_model(folder of model.json, ...)`, `get_scene_embeddings` and
`get_timestamp_embeddings`, which raise the errors of those in `pipeline.hear.api.model`. It imports
its third-party package only in `load_model`.
"""

from pathlib import Path

from pipeline.hear import api
from pipeline.hear.api.model import Statistics
from pipeline.hear.embed.embed import HearModule
from pipeline.hear.models import crepe, external, mel, wav2vec2
from pipeline.hear.params import TRAINED, ExtractionParams


def load_hear_module(
    name: str, folder: Path, params: ExtractionParams, statistics: Statistics | None = None
) -> HearModule:
    """Return a model on the CPU.

    Args:
        statistics: those of a task's training clips, for the normalization "task".

    Raises:
        FileNotFoundError, ValueError: the model's files are missing or invalid.
        RuntimeError: a package is missing.
    """
    if name in TRAINED:
        options = params.model_dump()
        model = api.load_model(str(folder), **options, statistics=statistics)
        return HearModule(api, model)
    if name == "mel":
        options = params.model_dump(include={"window_ms", "hop_ms", "edges"})
        return HearModule(mel, mel.load_model(str(folder), **options))
    if name == "crepe":
        return HearModule(crepe, crepe.load_model(str(folder), params.hop_ms))
    if name == "wav2vec2":
        return HearModule(wav2vec2, wav2vec2.load_model(str(folder)))
    return external.load_external_module(folder)
