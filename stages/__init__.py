"""One module per DVC stage, run as `python -m stages.<name>`."""

import atexit

from pipeline.core import signals

if signals.is_run_as_module():  # and not imported by a test or a worker
    signals.exit_while_importing()
    atexit.register(signals.ignore)
