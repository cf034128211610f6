"""The layout of pages: Jinja templates, and how they write numbers and parameters."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def load_template(name: str) -> Template:
    """Return a page's layout, one of `templates`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {"signed": signed, "duration": duration, "share": share, "as_yaml": as_yaml}
    environment.filters |= filters
    return environment.get_template(name)


def as_yaml(value: Any) -> str:
    """Write a parameter as params.yaml does; a list as its items."""
    if isinstance(value, list):
        return ", ".join(map(as_yaml, value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def signed(value: float, digits: int = 0) -> str:
    """Write a number with its sign: "+17", "−3"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Write seconds as "4.2 s", "3 min 20 s" or "2 h 5 min"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    return f"{hours} h {rest_minutes} min" if hours else f"{minutes} min {rest} s"


def share(part: int, whole: int) -> str:
    """Write a part as percent of the whole."""
    return f"{100 * part / whole:.1f}%"
