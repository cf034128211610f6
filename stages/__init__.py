"""One module per DVC stage, run as `python -m stages.<name>`."""

from pipeline.core import startup

startup.prepare()
