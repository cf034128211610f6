"""Reading `params.yaml`: typed, frozen sections, checked before any work starts.

Each package declares its sections in its `params.py`, so that a new parameter of the evaluation
does not mark the features as changed. They import nothing heavy: checking the whole file
(`pipeline.config`) takes a fraction of a second.
"""

from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from pipeline.core.repository import locate

PARAMS_FILE = Path("params.yaml")
MAX_VALUES = 10_000  # in the file, those of an alias counted each time

LocalPath = Annotated[str, AfterValidator(locate)]  # a relative one: of the main repository


class Section(BaseModel):
    """One section of params.yaml: unknown keys and text in place of numbers are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_by_name=True
    )


S = TypeVar("S", bound=Section)


def classes(section: type[Section]) -> dict[str, Any]:
    """Return the class of each part of a section, by name."""
    return {name: field.annotation for name, field in section.model_fields.items()}


def read(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Return the whole file as plain Python values, read as YAML 1.2 (`1e-05` is a number).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = _parse(text)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no {path} in {Path.cwd()}; run the stage from the repository's root."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}. Save it as UTF-8.") from error
    except DuplicateKeyError as error:
        raise ValueError(f"{path}: {_duplicate(error, text)}") from None
    except RecursionError:
        raise ValueError(
            f"{path} is nested too deeply; only sections of values are supported."
        ) from None
    except (YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of sections, got {type(content).__name__}.")
    return deepcopy(content)


@cache
def _parse(text: str) -> Any:
    """Parse YAML, once for each content of the file, since it takes 20 ms."""
    content = YAML(typ="safe", pure=True).load(text)
    if (values := _count(content, {})) > MAX_VALUES:
        raise ValueError(f"its aliases expand to {values:,} values, of {MAX_VALUES:,} allowed")
    return content


def _count(value: Any, counts: dict[int, int]) -> int:
    """Return the number of values in a tree; `counts` holds those of its parts by their ids."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counts:
        parts = value.values() if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count(part, counts) for part in parts)
    return counts[id(value)]


def _duplicate(error: DuplicateKeyError, text: str) -> str:
    """Say which key appears twice in one section, and in which lines."""
    section, again = error.context_mark, error.problem_mark
    rows = [row[again.column :] for row in text.split("\n")[: again.line + 1]]
    key = rows[-1].split(":")[0]
    lines = [n + 1 for n in range(section.line, again.line) if rows[n].startswith(f"{key}:")]
    first = f"in line {lines[0]} and again" if lines else "twice, the second time"
    return f"{key} appears {first} in line {again.line + 1}. Remove one of them."


def load_value(key: str, path: Path = PARAMS_FILE) -> Any:
    """Return the value at a dotted key, unchecked.

    Raises:
        ValueError: there is no such key.
    """
    value: Any = read(path)
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"{path} has no {key!r}.")
        value = value[part]
    return value


def load(key: str, section: type[S], path: Path = PARAMS_FILE) -> S:
    """Return the section at a dotted key, checked against its class.

    Raises:
        ValueError: there is no such section, a key is unknown or missing, or a value has the
            wrong type or range.
    """
    return check(load_value(key, path), section, prefix=key, path=path)


def check(value: Any, section: type[S], prefix: str = "", path: Path = PARAMS_FILE) -> S:
    """Return `value` as a `section`, or raise one ValueError that names every faulty key."""
    try:
        return section.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        lines = [_explain(dict(e), prefix, section, path) for e in error.errors()]
        count = "1 wrong value" if len(lines) == 1 else f"{len(lines)} wrong values"
        raise ValueError("\n".join([f"{path}: {count}", *lines])) from None


def _explain(error: dict[str, Any], prefix: str, section: type[Section], path: Path) -> str:
    """One line: the dotted key, its value, what was expected, and the nearest known key."""
    location = [str(part) for part in error["loc"]]
    key = ".".join([prefix, *location] if prefix else location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(location, section)
        nearest = get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}."
        return f"  {key}: unknown key; {hint} Remove it or correct its name."
    if error["type"] == "missing":
        shown = path.name == PARAMS_FILE.name
        hint = " (the committed params.yaml shows its default)" if shown else ""
        return f"  {key}: missing; add it{hint}."
    if error["type"] == "value_error":
        return f"  {key}: {error['ctx']['error']}" if key else f"  {error['ctx']['error']}"
    return f"  {key or 'content'} = {error['input']!r}: {error['msg']}."


def _known_keys(location: list[str], section: Any) -> list[str]:
    """The known keys beside the last one of a location."""
    fields: dict[str, Any] = {}
    for part in location:
        model_fields = getattr(section, "model_fields", {})
        fields = {field.alias or name: field.annotation for name, field in model_fields.items()}
        section = fields.get(part)
    return sorted(fields)
