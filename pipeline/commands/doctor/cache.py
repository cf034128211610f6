"""Whether DVC's cache stores the data a second time.

DVC links a file to its cache in the first way in `cache.type` that works. But if `reflink` comes
first and the file system lacks it, DVC mistakes its own plain copy for a reflink and never tries
hard links (dvc_data.hashfile.checkout, 3.18).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.exceptions import NotDvcRepoError
from dvc.fs import generic
from dvc.repo import Repo

from pipeline.commands.doctor.finding import Finding
from pipeline.core.files import nearest_folder

LINKS = ["reflink", "hardlink", "symlink"]


@dataclass(frozen=True)
class Sharing:
    """How the data in the working tree and DVC's cache share space."""

    folder: Path  # of the cache
    types: list[str]  # cache.type
    usable: list[str]  # of LINKS, between cache and working tree
    remote: str  # address of the default remote, "" without one

    @property
    def is_copied(self) -> bool:
        """Whether data are stored twice."""
        first = self.types[0]
        return first not in ("reflink", "hardlink") or first not in self.usable

    def findings(self) -> Iterator[Finding]:
        """Yield how data are stored, and how to avoid copies; then the default remote."""
        usable = ", ".join(self.usable) or "copies alone"
        text = f"{self.folder}: cache.type is {','.join(self.types)}; possible are {usable}; "
        if not self.is_copied:
            yield Finding("ok", "dvc cache", f"{text}data are stored once")
        elif "hardlink" in self.usable:
            text += (
                "the first is not, so all data are stored twice. Run `dvc config cache.type "
                "hardlink,symlink`, then `dvc checkout --relink`"
            )
            yield Finding("warning", "dvc cache", text)
        else:
            text += "data are stored twice. A cache on the same file system would share them"
            yield Finding("warning", "dvc cache", text)
        yield Finding(
            "ok", "dvc remote", self.remote or "none; `dvc remote add -d` to share results"
        )


def sharing() -> Sharing:
    """Return how the current repository's cache is set up, after trying out links.

    Outside a DVC repository, it is DVC's default.
    """
    try:
        repo = Repo()
    except NotDvcRepoError:
        return Sharing(Path.cwd() / ".dvc" / "cache", ["reflink", "copy"], [], "")
    with repo:
        cache = repo.cache.local
        with (
            TemporaryDirectory(dir=nearest_folder(Path(cache.path))) as inside,
            TemporaryDirectory(dir=repo.root_dir) as outside,
        ):
            to = str(Path(outside, "x"))
            usable = generic.test_links(list(LINKS), cache.fs, inside, repo.fs, to)
        name = repo.config["core"].get("remote", "")
        remote = repo.config["remote"].get(name, {}).get("url", "")
        return Sharing(Path(cache.path), list(cache.cache_types), usable, remote)
