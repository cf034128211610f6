"""Whether DVC's cache takes the space of the data once more.

DVC links a file to its cache in the first way of `cache.type` that it can. But where `reflink`
comes first and the file system has none, it takes the plain copy that is there for one, and does
not go on to hard links (dvc_data.hashfile.checkout, 3.18).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.exceptions import NotDvcRepoError
from dvc.fs import generic
from dvc.repo import Repo

from pipeline.commands.doctor import Finding
from pipeline.core.files import nearest_folder

LINKS = ["reflink", "hardlink", "symlink"]


@dataclass(frozen=True)
class Sharing:
    """How the data in the working tree and DVC's cache share space."""

    folder: Path  # of the cache
    wanted: list[str]  # cache.type
    usable: list[str]  # of LINKS, between cache and working tree
    remote: str  # address of the default remote, "" without one

    @property
    def is_copied(self) -> bool:
        """Whether data are stored twice."""
        return not (self.wanted[0] in ("reflink", "hardlink") and self.wanted[0] in self.usable)

    def findings(self) -> Iterator[Finding]:
        """Yield what to know of it."""
        told = f"{self.folder}: cache.type is {','.join(self.wanted)}; possible are "
        told += ", ".join(self.usable) or "copies alone"
        if self.is_copied and "hardlink" in self.usable:
            mend = (
                "; the first is not, so all data are stored twice. Run `dvc config cache.type "
                "hardlink,symlink`, then `dvc checkout --relink`"
            )
            yield Finding("warning", "dvc cache", told + mend)
        elif self.is_copied:
            mend = "; data are stored twice. A cache on their own file system would share them"
            yield Finding("warning", "dvc cache", told + mend)
        else:
            yield Finding("ok", "dvc cache", f"{told}; data are stored once")
        yield Finding(
            "ok", "dvc remote", self.remote or "none; `dvc remote add -d` to share results"
        )


def sharing() -> Sharing:
    """Return how the repository of the current folder is set up, trying links out.

    Outside a DVC repository, what DVC does by default.
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
