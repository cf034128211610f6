"""The download's queue, seen from outside: `python -m pipeline.commands.queue`.

    status              clips here, lost and left, by class and label; rate, time left, disk;
                        --markdown, --csv: the table of classes alone
    dry-run             what the next run of the stage would ask for, and how long it would take
    retry gone,login    let the next run try the clips of these classes again
    ledger FILE.csv     write one row per clip, with the attempts, tool and time of each; they are
                        not in data/clips/ledger.csv, whose bytes a resumed run must give again

None of them needs a network. The queue itself is worked off by the stage `download`.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.commands import download_status, queue_ledger
from pipeline.core import params
from pipeline.core.files import free_bytes
from pipeline.core.settings import NetworkParams
from pipeline.corpus import labels
from pipeline.corpus.fetch.clip_store import RETRIED, ClipStore
from pipeline.corpus.fetch.cutting import local_path
from pipeline.corpus.fetch.download_ledger import WAITING, clip_key
from pipeline.corpus.fetch.fetcher import Fetcher, store_folder
from pipeline.corpus.fetch.media import recording_url
from pipeline.corpus.params import FETCHED, SOURCES
from pipeline.corpus.sources import open_source, selection
from pipeline.corpus.sources.audioset import AudioSet, cached_path

logger = logging.getLogger(__name__)

LOST = {"gone", "geo", "login", "no_audio", "corrupt", "short", *RETRIED}
SHOWN = 5  # addresses of a dry run


class Queue:
    """The clips of the source that params.yaml names, and what became of them."""

    def __init__(self) -> None:
        source = params.load_value("source")
        chosen: Any = params.load(f"sources.{source}", SOURCES[source])
        if not isinstance(chosen, FETCHED):
            fetched = [name for name, kind in SOURCES.items() if issubclass(kind, FETCHED)]
            raise ValueError(
                f"source = {source!r} has no queue: its clips are files that are here. Only "
                f"{', '.join(fetched)} fetch recordings one by one."
            )
        given: Any = open_source(chosen)
        if isinstance(given, AudioSet) and not given.is_here():
            raise FileNotFoundError(
                "AudioSet's lists are not here yet: the stage `download` fetches them first. Start "
                "it once, or give paths in sources.audioset."
            )
        self.source = source
        self.network = params.load("network", NetworkParams)
        self.url = given.url
        self.segments = selection.select(given.segments(), chosen.clips)
        self.store = ClipStore(store_folder(given.url))
        names = cached_path(getattr(chosen, "labels", f"data/{source}/labels.csv"))
        self.names = labels.read_names(names) if names.exists() else {}


def status(queue: Queue, table: str = "") -> Iterator[str]:
    """Yield how far the download is, or a table of it: `markdown` or `csv`."""
    found = download_status.of(queue.segments, queue.store)
    if table:
        yield from download_status.attrition(found, markdown=table == "markdown")
        return
    yield f"source = {queue.source}"
    network = queue.network
    if local_path(recording_url(queue.url, "")) is not None:  # files need no permission
        network = network.model_copy(update={"clips_per_hour": 0.0})
    yield from download_status.summary(found, network, free_bytes(queue.store.folder))
    yield from download_status.label_table(found, queue.names)


def dry_run(queue: Queue) -> Iterator[str]:
    """Yield what the next run would ask for."""
    network = queue.network
    fetcher = Fetcher(queue.url, queue.store, queue.store.folder / "partial", network)
    missing = [segment for segment in queue.segments if not fetcher.is_settled(segment)]
    tried = missing[: network.limit or None]
    yield f"{len(tried):,} of {len(missing):,} missing clips would be tried, in this order:"
    yield from (f"  {recording_url(queue.url, s.recording_id)}" for s in islice(tried, SHOWN))
    if len(tried) > SHOWN:
        yield f"  and {len(tried) - SHOWN:,} more"
    if fetcher.is_local:
        yield "from files: network.* counts for nothing"
    elif network.clips_per_hour:
        hours = len(tried) / network.clips_per_hour
        days = hours / download_status.open_hours(network)
        yield f"at {network.clips_per_hour:g} per hour: {hours:,.1f} h, that is {days:,.1f} days"
    yield f"cookies: {network.cookies or 'none'}; proxy: {'yes' if network.proxy else 'none'}"


def retry(queue: Queue, classes: Sequence[str]) -> Iterator[str]:
    """Let the next run try the lost clips of some classes again.

    Raises:
        ValueError: there is no such class of failures.
        RuntimeError: the stage is running.
    """
    if unknown := sorted(set(classes) - LOST):
        raise ValueError(
            f"{', '.join(unknown)}: no class of failures that can be tried again; these are "
            f"{', '.join(sorted(LOST))}."
        )
    with queue.store.locked():
        keys = [k for k in map(clip_key, queue.segments) if status_of(queue.store, k) in classes]
        for name in keys:
            queue.store.retry(name)
    yield f"{len(keys):,} clips will be tried again by `dvc repro -f download`."


def write_ledger(queue: Queue, path: Path) -> Iterator[str]:
    """Write what is known of each clip to a CSV file."""
    queue_ledger.write(path, queue.segments, queue.store, queue.url)
    yield f"{len(queue.segments):,} rows in {path}"


def status_of(store: ClipStore, name: str) -> str:
    """Return the class of a clip."""
    outcome = store.last(name)
    return outcome.status if outcome else WAITING


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser("python -m pipeline.commands.queue", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    told = commands.add_parser(
        "status", help="how far the download is"
    ).add_mutually_exclusive_group()
    for table in ("markdown", "csv"):
        told.add_argument(f"--{table}", dest="table", action="store_const", const=table, default="")
    commands.add_parser("dry-run", help="what the next run would ask for")
    again = commands.add_parser("retry", help="let the next run try lost clips again")
    again.add_argument("classes", help=f"comma-joined, of {', '.join(sorted(LOST))}")
    export = commands.add_parser("ledger", help="write what is known of each clip")
    export.add_argument("file", type=Path, help="CSV file to write")
    given = parser.parse_args(arguments)
    try:
        for line in lines_of(given):
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        sys.exit(str(error))


def lines_of(given: argparse.Namespace) -> Iterator[str]:
    """Do what a command line asks for and return what there is to tell."""
    queue = Queue()
    if given.command == "status":
        return status(queue, given.table)
    if given.command == "retry":
        return retry(queue, given.classes.split(","))
    return write_ledger(queue, given.file) if given.command == "ledger" else dry_run(queue)


if __name__ == "__main__":
    main()
