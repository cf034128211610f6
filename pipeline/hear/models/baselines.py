"""Descriptions of the evaluation's baselines, `data/<model>/model.json`.

    {"model", ...}: everything that affects what the model computes, with versions of packages and
    checksums of weights, so that DVC repeats the embedding when one of them changes

The description of a model that is not in `hear.models` is its name alone. Nothing heavy is imported
here except the module of `hear.module`, if it is used: `validate` checks that packages and weights
are available before any work starts.
"""

import hashlib
import importlib
import json
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.core.files import sha256
from pipeline.core.repository import locate
from pipeline.features.params import LogMelParams
from pipeline.hear.params import BaselineParams, Model

SETTINGS = "model.json"
FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")  # the HEAR API
WAV2VEC2_FILES = "https://download.pytorch.org/torchaudio/models/"


def require_installed(params: BaselineParams) -> None:
    """Check that packages and weights of the chosen baselines are available.

    Raises:
        FileNotFoundError: weights are missing.
        ValueError: a setting is missing, or hear.module does not have the HEAR API.
        RuntimeError: a package is missing, or hear.module cannot be imported.
    """
    if "crepe" in params.models and find_spec("torchcrepe") is None:
        raise RuntimeError(
            "hear.models has crepe, but the package torchcrepe is not installed. Install it with "
            "`pip install torchcrepe`, or remove crepe from hear.models."
        )
    if "wav2vec2" in params.models:
        _require_wav2vec2(params.wav2vec2.bundle, params.wav2vec2.weights)
    if "module" in params.models:
        _require_module(params.module.import_, params.module.weights)


def describe(name: Model, params: BaselineParams, log_mel: LogMelParams) -> dict[str, Any]:
    """Return the content of a baseline's model.json."""
    content: dict[str, Any] = {"model": name}
    if name not in params.models:
        return content
    if name == "mel":
        return content | {"logmel": log_mel.model_dump(by_alias=True)}
    if name == "crepe":
        settings = params.crepe.model_dump()
        return content | settings | {"packages": _versions("torchcrepe")}
    if name == "wav2vec2":
        weights = params.wav2vec2.weights
        content |= {"bundle": params.wav2vec2.bundle, "weights": str(Path(weights))}
        return content | {
            "sha256": checksum(Path(locate(weights))),
            "packages": _versions("torchaudio"),
        }
    external = params.module
    content |= {"import": external.import_, "weights": external.weights}
    content["sha256"] = checksum(Path(locate(external.weights))) if external.weights else None
    return content | {"packages": _versions(external.import_.split(".")[0])}


def write(content: dict[str, Any], folder: Path) -> None:
    """Write a baseline's model.json into an existing folder."""
    (folder / SETTINGS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Return the content of model.json, given its path or its folder.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not JSON, or its model was not in hear.models when it was written.
    """
    file = path / SETTINGS if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist. Run `dvc repro baselines`.")
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is broken ({error}). Run `dvc repro -f baselines`.") from None
    if set(content) == {"model"}:
        raise ValueError(
            f"{file}: {content['model']} was not in hear.models when it was written. Add it there "
            "and run `dvc repro`."
        )
    return content


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their names."""
    if not path.is_dir():
        return sha256(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)}\0".encode())
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


def _require_wav2vec2(bundle: str, weights: str) -> None:
    if not Path(locate(weights)).is_file():
        raise FileNotFoundError(
            f"hear.models has wav2vec2, but hear.wav2vec2.weights = {weights!r} is not a file. "
            "Print the address of the bundle's file with "
            "`python -c 'import torchaudio.pipelines as p; "
            f'print("{WAV2VEC2_FILES}" + p.{bundle}._path)\'`, download it (0.4 to 8 GB), and set '
            "hear.wav2vec2.weights to its path."
        )


def _require_module(name: str, weights: str) -> None:
    if not name:
        raise ValueError(
            "hear.models has module, but hear.module.import is empty. Set it to the import path of "
            "an installed module with the HEAR API, such as hearbaseline.torchcrepe."
        )
    if weights and not Path(locate(weights)).exists():
        raise FileNotFoundError(f"hear.module.weights = {weights!r} does not exist.")
    import_hear_module(name)


def import_hear_module(name: str) -> ModuleType:
    """Import a module with the HEAR API.

    Raises:
        RuntimeError: it cannot be imported, for any reason.
        ValueError: it does not have the HEAR API.
    """
    try:
        api = importlib.import_module(name)
    except Exception as error:
        raise RuntimeError(
            f"hear.module.import = {name!r} {_import_failure(name, error)}"
        ) from error
    missing = [function for function in FUNCTIONS if not callable(getattr(api, function, None))]
    if missing:
        raise ValueError(
            f"hear.module.import = {name!r} has no {', '.join(missing)}, so it is not a HEAR "
            "module. Correct the name."
        )
    return api


def _import_failure(name: str, error: Exception) -> str:
    """Return why a module cannot be imported, and what to do."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return (
            f"cannot be imported: {type(error).__name__}: {error}. Correct the module, or "
            "reinstall its package."
        )
    if f"{name}.".startswith(f"{error.name}."):
        return (
            "is not installed: the module does not exist. Install its package with "
            "`pip install <package>`, or correct the name."
        )
    return (
        f"needs the module {error.name!r}, which is not installed. Install its package with "
        "`pip install <package>`."
    )


def _versions(name: str) -> dict[str, str]:
    """Return the versions of the distributions that contain a package; possibly none."""
    versions = {}
    for distribution in sorted(set(packages_distributions().get(name, []))):
        try:
            versions[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return versions
