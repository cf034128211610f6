"""Any installed module with the HEAR API as a model (`hear.module`)."""

import importlib
from pathlib import Path

from torch import nn

from pipeline import baselines
from pipeline.embeddings import HearModule

FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")


def load(folder: Path) -> HearModule:
    """Return the module that a folder's model.json names, with its model in evaluation mode.

    hear-eval-kit leaves the mode to the module; a module that forgets it would embed with dropout.

    Raises:
        FileNotFoundError, ValueError: model.json is missing or faulty, or the module has not the
            HEAR API.
        RuntimeError: it cannot be imported.
    """
    settings = baselines.read(folder)
    name, weights = settings["import"], settings["weights"]
    try:
        api = importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            f"hear.module.import = {name!r} cannot be imported: {error}. Install its package with "
            "`pip install <package>`, or correct the name."
        ) from error
    missing = [function for function in FUNCTIONS if not callable(getattr(api, function, None))]
    if missing:
        raise ValueError(
            f"hear.module.import = {name!r} has no {', '.join(missing)}, so it is no HEAR module."
        )
    model = api.load_model(weights) if weights else api.load_model()
    if not isinstance(model, nn.Module) or not hasattr(model, "sample_rate"):
        raise ValueError(
            f"{name}.load_model returned a {type(model).__name__}, expected a torch module with "
            "the attribute sample_rate (models of TensorFlow are not supported)."
        )
    return HearModule(api, model.eval())
