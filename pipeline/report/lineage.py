"""Whether a result belongs to the present parameters, by DVC's own record of its inputs.

If a stage fails, `dvc repro --keep-going` leaves the outputs of later stages as an earlier run made
them. `dvc.lock` reveals it: what a stage read must be what the stage before it has written since,
and its parameters must be those of params.yaml.
"""

import logging
from pathlib import Path
from typing import Any

from pipeline.core import params

logger = logging.getLogger(__name__)

RECORD = Path("dvc.lock")
CHECKS = "validate"  # depends on every parameter, but no result depends on its output


class Lineage:
    """The record of all stages; without a file, nothing is known."""

    def __init__(self, path: Path = RECORD) -> None:
        stages = params.read(path)["stages"] if path.exists() else {}
        self._stages: dict[str, Any] = {k: v for k, v in stages.items() if k != CHECKS}
        outputs = [(name, out) for name, s in self._stages.items() for out in s.get("outs", [])]
        self._makers = {out["path"]: name for name, out in outputs}
        self._md5 = {out["path"]: out.get("md5") for _, out in outputs}

    def why_outdated(self, output: Path) -> str:
        """Return what has changed since an output was made, or an empty string."""
        seen: set[str] = set()
        paths = {str(output)}
        while paths := paths & self._makers.keys() - seen:
            seen |= paths
            for name in sorted(self._makers[path] for path in paths):
                if change := self._changed_param(name) or self._changed_dependency(name):
                    return f"{name} was run with another {change}"
                paths = paths | {dep["path"] for dep in self._dependencies(name)}
        return ""

    def is_current(self, output: Path) -> bool:
        """Return whether there is a file of the present parameters; log it if it is outdated."""
        reason = self.why_outdated(output) if output.exists() else ""
        if reason:
            logger.warning("%s is of an earlier run and left out: %s.", output, reason)
        return output.exists() and not reason

    def _changed_param(self, name: str) -> str:
        values = self._stages[name].get("params", {}).get("params.yaml", {})
        return next((key for key, value in values.items() if value != _present(key)), "")

    def _changed_dependency(self, name: str) -> str:
        """Return the first dependency that another stage has written since."""
        for dep in self._dependencies(name):
            if dep["path"] in self._md5 and dep.get("md5") != self._md5[dep["path"]]:
                return str(dep["path"])
        return ""

    def _dependencies(self, name: str) -> list[dict[str, Any]]:
        return list(self._stages[name].get("deps", []))


def _present(key: str) -> Any:
    try:
        return params.load_value(key)
    except ValueError:
        return None
