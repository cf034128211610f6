"""What this machine has, and what the run that params.yaml describes will take of it.

    python -m pipeline.commands.doctor

tells versions, tools, devices, DVC's cache, disk and time, without a network and without starting
anything. Each line is ok, a warning or a problem, and says how to mend it.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    level: Literal["ok", "warning", "problem"]
    subject: str
    text: str

    def __str__(self) -> str:
        """Return the line as it is printed."""
        return f"{self.level:8} {self.subject:11} {self.text}"
