"""DVC and Git as a user runs them, in copies of this repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]


def dvc(folder, *arguments, fails=False, **environment):
    """Run dvc in a folder and return what it printed."""
    with TemporaryFile("w+") as output:  # a pipe would be held open by the workers of a queue
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=folder,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output.seek(0)
        text = output.read()
    assert bool(done.returncode) is fails, text
    return text


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)


def commit(folder, message):
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message)


def set_params(folder, **changes):
    """Set dotted keys of params.yaml, `__` standing for a dot."""
    yaml, path = YAML(), folder / "params.yaml"
    content = yaml.load(path)
    for key, value in changes.items():
        *parents, last = re.split(r"__|\.", key)
        section = content
        for part in parents:
            section = section[part]
        section[last] = value
    yaml.dump(content, path)


def stages_run(output):
    """Names of the stages that a run executed, those taken from the cache not among them."""
    return re.findall(r"Running stage '([^']+)'", output)


def copy_repository(folder):
    """Copy the working tree's files to a folder, without what a run records."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith("reports/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
