"""Look at the download's queue, and let lost clips be tried again. No command needs a network.

    status              clips here, lost and left, by class and label; rate, time left, disk;
                        --markdown or --csv: only the table of classes
    dry-run             what the next run of the stage would request, and how long it would take
    retry gone,login    let the next run try the clips of these classes again
    ledger FILE.csv     write one row per clip, with attempts, tool and time, which are not in
                        data/clips/ledger.csv: a resumed run must reproduce that file's bytes

The stage `download` itself works through the queue.
"""

import argparse
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
from pipeline.core.stage import EXPECTED_ERRORS
from pipeline.corpus import labels
from pipeline.corpus.fetch.clip_store import RETRIED, ClipStore
from pipeline.corpus.fetch.cutting import local_path
from pipeline.corpus.fetch.download_ledger import WAITING, clip_key
from pipeline.corpus.fetch.fetcher import Fetcher, store_folder
from pipeline.corpus.fetch.media import recording_url
from pipeline.corpus.params import FETCHED, SOURCES
from pipeline.corpus.sources import open_source, selection
from pipeline.corpus.sources.audioset import AudioSet, cached_path

LOST = {"gone", "geo", "login", "no_audio", "corrupt", "short", "bad_address", *RETRIED}
SHOWN = 5  # addresses of a dry run


class Queue:
    """The clips of the source that params.yaml names, and what became of them."""

    def __init__(self) -> None:
        self.source = params.load_value("source")
        section: Any = params.load(f"sources.{self.source}", SOURCES[self.source])
        if not isinstance(section, FETCHED):
            fetched = [name for name, kind in SOURCES.items() if issubclass(kind, FETCHED)]
            raise ValueError(
                f"source = {self.source!r} has no queue: its clips are local files. Only "
                f"{', '.join(fetched)} fetch recordings one by one."
            )
        recordings: Any = open_source(section)
        if isinstance(recordings, AudioSet) and not recordings.is_here():
            raise FileNotFoundError(
                "AudioSet's lists are not here yet: the stage `download` fetches them first. Start "
                "it once, or give paths in sources.audioset."
            )
        self.network = params.load("network", NetworkParams)
        self.url = recordings.url
        self.segments = selection.select(recordings.segments(), section.clips)
        self.store = ClipStore(store_folder(self.url))
        names = cached_path(getattr(section, "labels", f"data/{self.source}/labels.csv"))
        self.label_names = labels.read_names(names) if names.exists() else {}

    def class_of(self, key: str) -> str:
        """Return the class of a clip."""
        outcome = self.store.last(key)
        return outcome.status if outcome else WAITING


def status(queue: Queue, table: str = "") -> Iterator[str]:
    """Yield how far the download is, or only a table of classes: `markdown` or `csv`."""
    progress = download_status.read_status(queue.segments, queue.store)
    if table:
        yield from download_status.class_table(progress, markdown=table == "markdown")
        return
    yield f"source = {queue.source}"
    network = queue.network
    if local_path(recording_url(queue.url, "")) is not None:  # no rate limit applies to files
        network = network.model_copy(update={"clips_per_hour": 0.0})
    yield from download_status.summary(progress, network, free_bytes(queue.store.folder))
    yield from download_status.label_table(progress, queue.label_names)


def dry_run(queue: Queue) -> Iterator[str]:
    """Yield what the next run would request."""
    network = queue.network
    fetcher = Fetcher(queue.url, queue.store, queue.store.folder / "partial", network)
    missing = fetcher.missing(queue.segments)
    tried = missing[: network.limit or None]
    yield f"{len(tried):,} of {len(missing):,} missing clips would be tried, in this order:"
    yield from (f"  {recording_url(queue.url, s.recording_id)}" for s in islice(tried, SHOWN))
    if len(tried) > SHOWN:
        yield f"  and {len(tried) - SHOWN:,} more"
    if fetcher.is_local:
        yield "from files: network.* has no effect"
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
            f"{', '.join(unknown)}: not a class of failures that can be tried again; these are "
            f"{', '.join(sorted(LOST))}."
        )
    with queue.store.locked():
        keys = [key for key in map(clip_key, queue.segments) if queue.class_of(key) in classes]
        for key in keys:
            queue.store.retry(key)
    yield f"{len(keys):,} clips will be tried again by `dvc repro -f download`."


def write_ledger(queue: Queue, path: Path) -> Iterator[str]:
    """Write what is known of each clip to a CSV file."""
    queue_ledger.write(path, queue.segments, queue.store, queue.url)
    yield f"{len(queue.segments):,} rows in {path}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's arguments; `run` is the function of the command."""
    parser = argparse.ArgumentParser("python -m pipeline.commands.queue", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser("status")
    command.set_defaults(run=lambda queue, options: status(queue, options.table))
    tables = command.add_mutually_exclusive_group()
    for table in ("markdown", "csv"):
        tables.add_argument(
            f"--{table}",
            dest="table",
            action="store_const",
            const=table,
            default="",
            help="only the table of classes",
        )
    command = commands.add_parser("dry-run")
    command.set_defaults(run=lambda queue, options: dry_run(queue))
    command = commands.add_parser("retry")
    command.add_argument("classes", help=f"comma-joined, of {', '.join(sorted(LOST))}")
    command.set_defaults(run=lambda queue, options: retry(queue, options.classes.split(",")))
    command = commands.add_parser("ledger")
    command.add_argument("file", type=Path, help="CSV file to write")
    command.set_defaults(run=lambda queue, options: write_ledger(queue, options.file))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = parse(arguments)
    try:
        for line in options.run(Queue(), options):
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except EXPECTED_ERRORS as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
