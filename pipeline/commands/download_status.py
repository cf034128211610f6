"""How far a download is, from the segment list and the journal alone, without a network."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.core.settings import NetworkParams
from pipeline.corpus.clips.ledger import OK
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch.clip_store import RETRIED, ClipStore
from pipeline.corpus.fetch.download_ledger import WAITING, clip_key

HOURS = (1, 24)  # over which the rate is averaged
SHOWN_LABELS = 15
GUESSED_BYTES = 1_000_000  # of a clip before any is here: 10 s of FLAC, stereo, 48 kHz
LEFT = {WAITING, *RETRIED}


@dataclass(frozen=True)
class Status:
    """Progress of a download."""

    statuses: Counter[str]  # clips by status, OK and WAITING among them
    labels: dict[str, Counter[str]]  # the same for each label
    recent: dict[int, int]  # hours -> attempts that ended within them
    stored_bytes: int  # of the clips that are here

    @property
    def total(self) -> int:
        """Number of clips."""
        return self.statuses.total()

    @property
    def left(self) -> int:
        """Number of clips that the next runs will try."""
        return sum(self.statuses[status] for status in LEFT)

    @property
    def forecast_bytes(self) -> int:
        """Size of all clips in the end, if as many of the rest are available as so far."""
        ok, settled = self.statuses[OK], self.total - self.left
        each = self.stored_bytes / ok if ok else GUESSED_BYTES
        return round(self.stored_bytes + each * self.left * (ok / settled if settled else 1.0))


def read_status(segments: Sequence[Segment], store: ClipStore) -> Status:
    """Return the status of the clips of some segments."""
    now_s = time.time()
    statuses, stored_bytes = Counter[str](), 0
    labels: dict[str, Counter[str]] = {}
    recent = dict.fromkeys(HOURS, 0)
    for segment in segments:
        outcome = store.last(clip_key(segment))
        status = outcome.status if outcome else WAITING
        if outcome:
            stored_bytes += (outcome.bytes or 0) if status == OK else 0
            for hours in HOURS:
                recent[hours] += outcome.time_s > now_s - 3600 * hours
        statuses[status] += 1
        for label in segment.labels.split(","):
            labels.setdefault(label, Counter())[status] += 1
    return Status(statuses, labels, recent, stored_bytes)


def open_hours(network: NetworkParams) -> float:
    """Return the hours of a day in which requests are made."""
    return (network.to_hour - network.from_hour) % 24 or 24.0


def summary(status: Status, network: NetworkParams, free_bytes: int) -> Iterator[str]:
    """Yield a status in words: clips, rate, time left, disk."""
    yield f"{status.total:,} clips: {status.statuses[OK]:,} here, {status.left:,} left"
    for name, count in status.statuses.most_common():
        yield f"  {name:12} {count:>11,}  {count / max(status.total, 1):6.1%}"
    for hours, ended in status.recent.items():
        yield f"last {hours} h: {ended:,} clips tried, {ended / hours:,.1f} per hour"
    yield f"left at the rate of the last 24 h: {_days(status.left, float(status.recent[24]))}"
    if network.clips_per_hour:
        per_day = network.clips_per_hour * open_hours(network)
        rate = f"{network.clips_per_hour:g} per hour, {open_hours(network):g} hours a day"
        yield f"left at network.clips_per_hour ({rate}): {_days(status.left, per_day)}"
    yield (
        f"disk: {gb(status.stored_bytes)} of clips, about {gb(status.forecast_bytes)} in the "
        f"end; {gb(free_bytes)} free"
    )


def class_table(status: Status, markdown: bool) -> Iterator[str]:
    """Yield a table of the classes in Markdown or CSV: class, clips, share."""
    rows = [(name, f"{n}", f"{n / status.total:.4f}") for name, n in status.statuses.most_common()]
    for row in [("class", "clips", "share"), *rows, ("all", f"{status.total}", "1.0000")]:
        yield f"| {' | '.join(row)} |" if markdown else ",".join(row)
        if markdown and row[0] == "class":
            yield "|---|---:|---:|"


def label_table(status: Status, names: Mapping[str, str]) -> Iterator[str]:
    """Yield the labels that lost the largest shares of their clips so far, if any did."""
    rows = []
    for label, counts in status.labels.items():
        lost = sum(count for name, count in counts.items() if name not in {OK, *LEFT})
        if lost:
            rows.append((lost / (lost + counts[OK]), lost, label, counts[OK]))
    rows.sort(key=lambda row: (-row[0], -row[1], row[2]))
    if rows:
        yield "labels that lost most (share and number of their clips tried)"
    for share, lost, label, ok in rows[:SHOWN_LABELS]:
        yield f"  {share:6.1%} {lost:>9,} of {lost + ok:>9,}  {names.get(label, label)}"


def _days(clips: int, per_day: float) -> str:
    if not clips:
        return "nothing"
    return f"{clips / per_day:,.1f} days" if per_day else "unknown, none was tried"


def gb(size: int | float) -> str:
    """Return a size in GB, a small one in MB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
