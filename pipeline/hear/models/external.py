"""Any installed module with the HEAR API as a model (`hear.module`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.hear.embed.embed import HearModule
from pipeline.hear.models import baselines


class ExternalModule(HearModule):
    """A module of others, whose errors may be of any kind."""

    def __call__(self, waves: Float[Tensor, "B S"], embedding_type: str) -> tuple[Any, Any]:
        """Return what the module does for clips of equal length; see `HearModule`.

        Raises:
            RuntimeError: the module fails.
        """
        kind = "scene" if embedding_type == "scene" else "timestamp"
        with _named(f"{self.api.__name__}.get_{kind}_embeddings"):
            return super().__call__(waves, embedding_type)


@contextmanager
def _named(function: str) -> Iterator[None]:
    """Name the module's function in any error of the block."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"{function} failed: {type(error).__name__}: {error}. Correct the module, or "
            "hear.module.weights."
        ) from error


def load_external_module(folder: Path) -> HearModule:
    """Return the module that a folder's model.json names, with its model in evaluation mode.

    hear-eval-kit leaves the mode to the module; a module that forgets it would embed with dropout.

    Raises:
        FileNotFoundError, ValueError: model.json is missing or faulty, or the module has not the
            HEAR API.
        RuntimeError: it cannot be imported, or its load_model fails.
    """
    settings = baselines.read(folder)
    name, weights = settings["import"], settings["weights"]
    api = baselines.import_hear_module(name)
    with _named(f"{name}.load_model"):
        model = api.load_model(weights) if weights else api.load_model()
    if not isinstance(model, nn.Module) or not hasattr(model, "sample_rate"):
        raise ValueError(
            f"{name}.load_model returned a {type(model).__name__}, expected a torch module with "
            "the attribute sample_rate (models of TensorFlow are not supported)."
        )
    return ExternalModule(api, model.eval())
