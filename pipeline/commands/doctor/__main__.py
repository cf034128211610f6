"""Check this machine, offline: versions, tools, devices, DVC's cache, disk and time of a run.

Each line is ok, a warning or a problem, and says how to fix it. Nothing is started or changed. The
exit status is 1 if there is a problem.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata

from pipeline.commands.doctor.finding import Finding

PACKAGES = ("torch", "torchaudio", "dvc", "yt-dlp", "heareval", "numpy", "h5py")
PYTHONS = ((3, 11), (3, 15))  # from, below; torch 2.11 has wheels for these


def versions() -> Iterator[Finding]:
    """Yield what is installed, without importing it: a package may be missing."""
    first, end = PYTHONS
    is_fit = first <= sys.version_info[:2] < end
    remedy = "" if is_fit else "; 3.11 to 3.14 is needed: make PYTHON=/path/to/python3 doctor"
    text = f"{sys.version.split()[0]}, {sys.executable}{remedy}"
    yield Finding("ok" if is_fit else "problem", "python", text)
    for name in PACKAGES:
        try:
            yield Finding("ok", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            text = "not installed; `source .venv/bin/activate`, or `make doctor`"
            yield Finding("problem", name, text)


def examine() -> Iterator[Finding]:
    """Yield all findings; if a package is missing, only those on the packages."""
    findings = list(versions())
    yield from findings
    if all(finding.level == "ok" for finding in findings):
        from pipeline.commands.doctor import examination  # needs the packages

        yield from examination.examine()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    argparse.ArgumentParser("python -m pipeline.commands.doctor", description=__doc__).parse_args(
        arguments
    )
    counts = Counter[str]()
    for finding in examine():
        counts[finding.level] += 1
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{counts['problem']} problem(s), {counts['warning']} warning(s)\n")
    sys.exit(1 if counts["problem"] else 0)


if __name__ == "__main__":
    main()
