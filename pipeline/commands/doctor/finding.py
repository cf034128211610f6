"""One line of the check-up."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was found about a subject, and, unless it is ok, how to fix it."""

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        """Return the line as it is printed."""
        return f"{self.level:8} {self.subject:11} {self.text}"
