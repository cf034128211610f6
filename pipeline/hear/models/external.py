"""Any installed module with the HEAR API as a model (`hear.module`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.core.repository import locate
from pipeline.hear.embed.embed import HearModule
from pipeline.hear.models import baselines


class ExternalModule(HearModule):
    """A third-party module, which may raise any exception."""

    def __call__(self, waves: Float[Tensor, "B S"], embedding_type: str) -> tuple[Any, Any]:
        """Return the module's output for clips of equal length; see `HearModule`.

        Raises:
            RuntimeError: the module fails.
        """
        kind = "scene" if embedding_type == "scene" else "timestamp"
        with _errors_named(f"{self.api.__name__}.get_{kind}_embeddings"):
            return super().__call__(waves, embedding_type)


@contextmanager
def _errors_named(function: str) -> Iterator[None]:
    """Turn any exception of the block into a RuntimeError that names the module's function."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"{function} failed: {type(error).__name__}: {error}. Correct the module, or "
            "hear.module.weights."
        ) from error


def load_external_module(folder: Path) -> HearModule:
    """Return the module named in a folder's model.json, with its model in evaluation mode.

    hear-eval-kit leaves the mode to the module, so one that forgets to set it embeds with dropout.

    Raises:
        FileNotFoundError, ValueError: model.json is missing or invalid, or the module does not have
            the HEAR API.
        RuntimeError: it cannot be imported, or its load_model fails.
    """
    settings = baselines.read(folder)
    name, weights = settings["import"], locate(settings["weights"])
    api = baselines.import_hear_module(name)
    with _errors_named(f"{name}.load_model"):
        model = api.load_model(weights) if weights else api.load_model()
    if not isinstance(model, nn.Module) or not hasattr(model, "sample_rate"):
        raise ValueError(
            f"{name}.load_model returned a {type(model).__name__}, expected a torch module with "
            "the attribute sample_rate (models of TensorFlow are not supported)."
        )
    return ExternalModule(api, model.eval())
