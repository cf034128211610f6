"""What a stage does before its imports, which take seconds: signals, and imports that fail."""

import atexit
import re
import resource
import sys
from types import TracebackType

from pipeline.core import signals
from pipeline.core.files import OPEN_FILES, open_files_hint

NO_MEMORY = re.compile(r"\S*: (failed to map segment|cannot allocate memory)[^\n]*", re.IGNORECASE)


def prepare() -> None:
    """Handle signals and failing imports in the process of `python -m stages.<name>`."""
    if sys.argv[0] == "-m":  # as long as Python looks for the module
        signals.exit_while_importing()
        atexit.register(signals.ignore)
        sys.excepthook = _report


def _report(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, MemoryError | ImportError) or OPEN_FILES in str(error):
        sys.stderr.write(f"{explain_import_error(error)}\n")
    else:
        sys.__excepthook__(kind, error, traceback)


def explain_import_error(error: BaseException) -> str:
    """Return why a package cannot be imported, and what to do about it."""
    if OPEN_FILES in str(error):
        return f"{error}\n{open_files_hint()}"
    cause = NO_MEMORY.search(str(error))
    if cause is None and not isinstance(error, MemoryError):
        return (
            f"{error}\nA package is missing or damaged. Install those of requirements.lock: "
            "`make doctor` does it and checks the machine."
        )
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    allowed = "" if limit == resource.RLIM_INFINITY else f" of {limit / 1e9:.1f} GB"
    return (
        f"There is not enough memory to load a library ({cause[0] if cause else error}). The limit "
        f"of this shell is `ulimit -v`{allowed}; torch alone maps several GB. Raise it, or free "
        "memory."
    )
