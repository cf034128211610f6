"""Reading `params.yaml`: typed, frozen sections, checked before any work starts.

The sections are grouped by the part of the pipeline that reads them (`data`, `method`, `hear`), so
that a new parameter of the evaluation does not mark the features as changed. They import nothing
heavy: checking the whole file (`config`) takes a fraction of a second.
"""

from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PARAMS_FILE = Path("params.yaml")


class Section(BaseModel):
    """One section of params.yaml: unknown keys and text in place of numbers are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_by_name=True
    )


S = TypeVar("S", bound=Section)


def read(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Return the whole file as plain Python values, read as YAML 1.2 (`1e-05` is a number).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or not a mapping.
    """
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no {path} in {Path.cwd()}; run the stage from the repository's root."
        ) from None
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of sections, got {type(content).__name__}.")
    return deepcopy(content)


@cache
def _parse(text: str) -> Any:
    """Parse YAML, once for each content of the file, since it takes 20 ms."""
    return YAML(typ="safe", pure=True).load(text)


def load_value(key: str, path: Path = PARAMS_FILE) -> Any:
    """Return the value at a dotted key, unchecked.

    Raises:
        KeyError: there is no such key.
    """
    value: Any = read(path)
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise KeyError(f"{path} has no {key!r}.")
        value = value[part]
    return value


def load(key: str, section: type[S], path: Path = PARAMS_FILE) -> S:
    """Return the section at a dotted key, checked against its class.

    Raises:
        KeyError: there is no such section.
        ValueError: a key is unknown or missing, or a value has the wrong type or range.
    """
    return check(load_value(key, path), section, prefix=key, path=path)


def check(value: Any, section: type[S], prefix: str = "", path: Path = PARAMS_FILE) -> S:
    """Return `value` as a `section`, or raise one ValueError that names every faulty key."""
    try:
        return section.model_validate(value)
    except ValidationError as error:
        lines = [_explain(dict(e), prefix, section) for e in error.errors()]
        raise ValueError("\n".join([f"{path}: {len(lines)} wrong value(s)", *lines])) from None


def _explain(error: dict[str, Any], prefix: str, section: type[Section]) -> str:
    """One line: the dotted key, its value, what was expected, and the nearest known key."""
    location, known = _locate([str(part) for part in error["loc"]], section)
    key = ".".join([prefix, *location] if prefix else location)
    if error["type"] == "extra_forbidden":
        nearest = get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}."
        return f"  {key}: unknown key; {hint} Remove it or correct its name."
    if error["type"] == "missing":
        return f"  {key}: missing; add it (the committed params.yaml shows its default)."
    if error["type"] == "value_error":
        return f"  {key or 'params.yaml'}: {error['ctx']['error']}"
    return f"  {key} = {error['input']!r}: {error['msg']}."


def _locate(location: list[str], section: Any) -> tuple[list[str], list[str]]:
    """Keys as they stand in the file, and the known neighbours of the last one.

    Pydantic puts the name of the chosen alternative (`lars`, `adamw`) into the location of a fault;
    the file has no such key.
    """
    keys: list[str] = []
    fields: dict[str, Any] = {}
    for part in location:
        alternatives = {
            name: choice
            for choice in get_args(section)
            if isinstance(choice, type) and issubclass(choice, Section)
            for name in get_args(choice.model_fields["name"].annotation)
        }
        if part in alternatives:
            section = alternatives[part]
            continue
        model_fields = getattr(section, "model_fields", {})
        fields = {field.alias or name: field.annotation for name, field in model_fields.items()}
        section = fields.get(part)
        keys.append(part)
    return keys, sorted(fields)
