"""Whether a result belongs to the present parameters, by DVC's own record of what it was made of.

After a stage that failed, `dvc repro --keep-going` leaves what lies behind it as an earlier run has
made it. `dvc.lock` tells: what was read there must be what the stage before has written since, and
the parameters must be those of params.yaml.
"""

from pathlib import Path
from typing import Any

from pipeline.core import params

RECORD = Path("dvc.lock")
CHECKS = "validate"  # its parameters are all there are, and no result depends on its output


class Lineage:
    """The record of all stages; without a file, nothing is known."""

    def __init__(self, path: Path = RECORD) -> None:
        stages = params.read(path)["stages"] if path.exists() else {}
        self._stages: dict[str, Any] = {k: v for k, v in stages.items() if k != CHECKS}
        outs = [(name, out) for name, s in self._stages.items() for out in s.get("outs", [])]
        self._made = {out["path"]: (name, out.get("md5")) for name, out in outs}

    def why_outdated(self, output: Path) -> str:
        """Return what has changed since an output was made, or an empty string."""
        seen, names = set(), {self._made[str(output)][0]} if str(output) in self._made else set()
        while names:
            name = names.pop()
            seen.add(name)
            for key, value in self._stages[name].get("params", {}).get("params.yaml", {}).items():
                if value != _present(key):
                    return f"{name} was run with another {key}"
            for dep in self._stages[name].get("deps", []):
                if dep["path"] in self._made:
                    maker, md5 = self._made[dep["path"]]
                    if md5 != dep.get("md5"):
                        return f"{name} was run with another {dep['path']}"
                    names |= {maker} - seen
        return ""


def _present(key: str) -> Any:
    try:
        return params.load_value(key)
    except KeyError:
        return None
