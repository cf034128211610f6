"""Compare what a repeatedly killed download leaves with what an uninterrupted one leaves.

    python benchmarks/kill.py --clips 512 --kills 20

fetches recordings from the loopback interface, some of which fail as real ones do, into a temporary
folder; see `tests/killed_download.py`. `tests/test_killed_download.py` does the same with fewer.
The exit status is 1 if the two downloads differ.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[1] / name) for name in ("", "tests"))

from killed_download import Comparison, compare


def table(ended: Comparison) -> str:
    """Return the comparison as lines of text."""
    shards = [name for name in ended.uninterrupted if name.endswith(".tar")]
    same = sum(ended.killed.get(name) == ended.uninterrupted[name] for name in shards)
    lines = {
        "clips": f"{len(ended.statuses)}: {dict(Counter(ended.statuses))}",
        "kills": f"{ended.kills}, {ended.late} of them while shards were published",
        "kills that left data/clips incomplete": str(ended.partial),
        "shards with the same bytes": f"{same} of {len(shards)}",
        "other files that are the same": str(ended.killed == ended.uninterrupted),
        "requests, uninterrupted and killed": "{} and {}".format(*ended.requests),
        "requests of one more run": str(ended.last_requests),
        "files in the store that are not shards": str(len(ended.leftovers)),
        "seconds, uninterrupted and killed": "{:.1f} and {:.1f}".format(*ended.seconds),
    }
    return "".join(f"{name:44}{value}\n" for name, value in lines.items())


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ended = compare(Path(folder), arguments.clips, arguments.kills, arguments.seed)
    sys.stdout.write(table(ended))
    sys.exit(ended.killed != ended.uninterrupted or ended.last_requests > 0)


if __name__ == "__main__":
    main()
