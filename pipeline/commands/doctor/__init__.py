"""Check, offline, what this machine has and what the run described by params.yaml needs.

`python -m pipeline.commands.doctor` prints one finding per line: ok, warning or problem.
"""
