"""`python -m pipeline.commands.doctor`; exit status 1 if there is a problem."""

import sys
from collections import Counter
from collections.abc import Iterator
from importlib import metadata

from pipeline.commands.doctor import Finding

PACKAGES = ("torch", "torchaudio", "dvc", "yt-dlp", "heareval", "numpy", "h5py")
PYTHONS = ((3, 11), (3, 15))  # from, below; torch 2.11 has wheels for these


def versions() -> Iterator[Finding]:
    """Yield what is installed; nothing of it is imported, so that a lack can be told."""
    first, end = PYTHONS
    told = f"{sys.version.split()[0]}, {sys.executable}"
    fits = first <= sys.version_info[:2] < end
    mend = "" if fits else "; 3.11 to 3.14 is needed: make PYTHON=/path/to/python3 doctor"
    yield Finding("ok" if fits else "problem", "python", told + mend)
    for name in PACKAGES:
        try:
            yield Finding("ok", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(
                "problem", name, "not installed; `source .venv/bin/activate`, or `make doctor`"
            )


def examine() -> Iterator[Finding]:
    """Yield all findings; without the packages, those on the packages alone."""
    found = list(versions())
    yield from found
    if all(finding.level == "ok" for finding in found):
        from pipeline.commands.doctor import examination  # needs the packages

        yield from examination.examine()


def main() -> None:
    """Print what is found."""
    counts = Counter[str]()
    for finding in examine():
        counts[finding.level] += 1
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{counts['problem']} problem(s), {counts['warning']} warning(s)\n")
    sys.exit(1 if counts["problem"] else 0)


if __name__ == "__main__":
    main()
