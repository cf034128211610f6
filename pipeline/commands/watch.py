"""Show a pre-training run on a live page, from a second terminal.

The page is .work/live/index.html, redrawn every few seconds from the curves that pre-training
writes there. The command ends with the run, or on Ctrl-C. No result depends on it.
"""

import argparse
import io
import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from pipeline.core import params
from pipeline.core.stage import work_root
from pipeline.report import figures
from pipeline.report.templating import load_template

logger = logging.getLogger(__name__)

EVERY_S = 5
RECENT = 5  # measurements of throughput whose median is the speed


@dataclass(frozen=True)
class Live:
    """Curves of the run so far, and its length according to params.yaml."""

    history: pd.DataFrame
    epochs: pd.DataFrame
    throughput: pd.DataFrame
    all_epochs: int
    batch_size: int
    news_s: float | None  # since the curves were last written

    @property
    def step(self) -> int:
        """Number of updates done."""
        return 0 if self.history.empty else int(self.history["step"].iloc[-1]) + 1

    @property
    def steps(self) -> int | None:
        """Number of updates of the whole run; None before the second one is logged."""
        if self.history.empty or not self.history["epoch"].iloc[-1] > 0:
            return None
        step, epoch = self.history[["step", "epoch"]].iloc[-1]
        return round(step / epoch * self.all_epochs)

    @property
    def epoch(self) -> int:
        """Number of whole epochs done."""
        return 0 if self.epochs.empty else int(self.epochs["epoch"].iloc[-1])

    @property
    def ended(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.all_epochs

    @property
    def samples_per_s(self) -> float | None:
        """Recent speed; None before it is known."""
        if self.throughput.empty:
            return None
        return float(self.throughput["samples_per_s"].iloc[-RECENT:].median())

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end; None before they can be estimated."""
        if not self.steps or not self.samples_per_s:
            return None
        return max(0, self.steps - self.step) * self.batch_size / self.samples_per_s


def read_live(folder: Path) -> Live:
    """Read the curves as far as they exist, and params.yaml."""
    history = folder / "history.csv"
    return Live(
        history=_read(history, ["step", "epoch"]),
        epochs=_read(folder / "epochs.csv", ["epoch"]),
        throughput=_read(folder / "throughput.csv", ["samples_per_s"]),
        all_epochs=params.load_value("pretrain.epochs"),
        batch_size=params.load_value("pretrain.batch_size"),
        news_s=time.time() - history.stat().st_mtime if history.exists() else None,
    )


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """Return the complete rows of a file that may be missing or half-written."""
    empty = pd.DataFrame(columns=columns, dtype=float)
    try:
        lines = path.read_text(errors="replace").rpartition("\n")[0]
        table = pd.read_csv(io.StringIO(lines), dtype=str).apply(pd.to_numeric, errors="coerce")
    except (OSError, ValueError):  # also pandas' own parser errors
        return empty
    return table.dropna(subset=columns) if {*columns} <= {*table} else empty


def write_page(live: Live, folder: Path) -> None:
    """Write index.html into a folder, atomically: a browser never sees half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    svg = {"loss": figures.learning_curves(live.history)}
    svg |= figures.telemetry(live.history, live.epochs, live.throughput)
    page = load_template("watch.html.j2").render(
        live=live,
        every_s=EVERY_S,
        clock=time.strftime("%H:%M:%S"),
        svg={name: Markup(text) for name, text in svg.items()},
    )
    new = folder / "index.html.new"
    new.write_text(page, encoding="utf-8")
    os.replace(new, folder / "index.html")


def watch(folder: Path, once: bool = False) -> None:
    """Rewrite the page until a run that it has seen in progress ends."""
    seen = False
    while True:
        live = read_live(folder)
        write_page(live, folder)
        if once or (seen and live.ended):
            return
        seen = not live.ended
        time.sleep(EVERY_S)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser("python -m pipeline.commands.watch", description=__doc__)
    parser.add_argument("--once", action="store_true", help="write the page once and stop")
    once = parser.parse_args().once
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = work_root() / "live"
    logger.info("file://%s", (folder / "index.html").resolve())
    with suppress(KeyboardInterrupt):
        watch(folder, once)


if __name__ == "__main__":
    main()
