"""The report's figures as inline SVG: no files, no fonts, no addresses, colors of the page.

Text and lines take `currentColor` or a CSS variable of the page, so that one figure serves a light
and a dark page. Pictures (matrices, spectrograms) are embedded pixel for pixel.
"""

import io
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.features.params import LogMelParams

INK, BLUE, ORANGE = "#000001", "#000002", "#000003"  # stand for the page's colors
COLORS = {INK: "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)"}
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Curve(NamedTuple):
    """A column of a table, and how it is drawn."""

    column: str
    label: str
    color: str
    style: str  # of the line


LOSS = [
    Curve("loss", "loss", INK, "-"),
    Curve("invariance", "invariance", BLUE, "-"),
    Curve("redundancy", "redundancy", ORANGE, "-"),
    Curve("noise_floor", "noise floor of redundancy", ORANGE, "--"),
]
RATES = [
    Curve("lr", "learning rate", INK, "-"),
    Curve("lr_vectors", "of biases and norms", BLUE, "--"),
]
NORMS = [
    Curve("encoder_grad_norm", "encoder, gradient", BLUE, "-"),
    Curve("projector_grad_norm", "projector, gradient", ORANGE, "-"),
    Curve("encoder_weight_norm", "encoder, weights", BLUE, "--"),
    Curve("projector_weight_norm", "projector, weights", ORANGE, "--"),
]
RANKS = [
    Curve("rank_y", "effective rank of y", BLUE, "-"),
    Curve("rank_z", "of z", ORANGE, "-"),
]
DEAD = [
    Curve("dead_y", "dead dimensions of y", BLUE, "-"),
    Curve("dead_z", "of z", ORANGE, "-"),
]
SPEED = [Curve("samples_per_s", "samples per second", INK, "-")]
WAIT = [Curve("wait_share", "share of time waiting for data", INK, "-")]
PROBE = [Curve("linear", "linear", BLUE, "-"), Curve("knn", "kNN", ORANGE, "--")]
MAX_POINTS = 500  # of a curve
FEW_POINTS = 25  # up to which they are also dots
WIDE = 300  # ratio of a curve's values from which a logarithmic axis has powers of 10 only
TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000)


def learning_curves(history: pd.DataFrame) -> str:
    """Draw the loss, its two parts and the noise floor over the steps, on a logarithmic axis."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.3))
        axes = figure.add_axes((0.09, 0.14, 0.9, 0.77))
        _plot(axes, history, "step", LOSS, positive=True)
        _logarithmic(axes)
        axes.set(xlabel="step", ylabel="loss of a batch")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=4, handlelength=1.6)
        return to_svg(figure, "loss", "Loss, its two parts and the noise floor over the steps")


def telemetry(
    history: pd.DataFrame, epochs: pd.DataFrame, throughput: pd.DataFrame
) -> dict[str, str]:
    """Draw the telemetry of a run, by name; a curve that is empty or missing is an empty figure.

    Args:
        history: one row per logged step.
        epochs: one row per epoch; without ranks if they are not measured.
        throughput: one row per stretch of steps.
    """
    return {
        "lr": small(history, "step", RATES, "lr", "Learning rates", "log"),
        "norms": small(history, "step", NORMS, "norms", "Norms", "log"),
        "ranks": small(epochs, "epoch", RANKS, "ranks", "Effective rank"),
        "dead": small(epochs, "epoch", DEAD, "dead", "Dead dimensions"),
        "speed": small(throughput, "step", SPEED, "speed", "Samples per second"),
        "wait": small(throughput, "step", WAIT, "wait", "Share of time waiting for data", "share"),
    }


def probe(curve: pd.DataFrame, best: int, name: str) -> str:
    """Draw the scores of a task over the epochs, and a line at the best one."""
    return small(curve, "epoch", PROBE, name, "Scores", scale="free", mark=best)


def small(
    table: pd.DataFrame,
    x: str,
    curves: Sequence[Curve],
    name: str,
    title: str,
    scale: Literal["zero", "share", "log", "free"] = "zero",
    mark: int | None = None,
) -> str:
    """Draw curves over `x` in half the page's width.

    Args:
        scale: vertical axis: from 0 up, from 0 to 1, logarithmic, or fitted to the values.
        mark: position of a vertical line.
    """
    legend = 0.1 + 0.2 * -(-len(curves) // 2)  # inches, as the other sizes
    height = 0.45 + 1.45 + legend
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, height))
        axes = figure.add_axes((0.14, 0.45 / height, 0.84, 1.45 / height))
        _plot(axes, table, x, curves, positive=scale == "log")
        if scale == "log":
            _logarithmic(axes)
        elif scale != "free":
            top = 1.05 * axes.dataLim.y1 if scale == "zero" else 1
            axes.set_ylim(0, top if top > 0 else 1)
        if mark is not None:
            axes.axvline(mark, color=INK, lw=0.8, ls=":")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel(x)
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1), ncols=2, handlelength=1.6)
        return to_svg(figure, name, f"{title} over the {x}s")


def correlation_map(matrix: Float[np.ndarray, "D D"], name: str) -> str:
    """Draw a cross-correlation matrix with colors from -1 (blue) to 1 (red)."""
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(4.0, 4.5))
        axes = figure.add_axes((0.14, 0.24, 0.81, 0.81 * 4.0 / 4.5))
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
        axes.set(xlabel="dimension of view 2", ylabel="dimension of view 1")
        bar_axes = figure.add_axes((0.14, 0.1, 0.81, 0.025))
        bar = figure.colorbar(
            image, bar_axes, orientation="horizontal", ticks=[-1, -0.5, 0, 0.5, 1]
        )
        bar.set_label("correlation")
        bar.outline.set_visible(False)
        return to_svg(figure, name, f"Cross-correlation matrix {name}")


def clip_and_views(
    pictures: Float[np.ndarray, "3 F T"],
    limits: tuple[float, float],
    params: LogMelParams,
    name: str,
) -> str:
    """Draw a clip's log-mel and its two views side by side, in standard deviations of the data."""
    n_mels, frames = pictures.shape[1:]
    seconds = frames * params.hop_length / params.sample_rate
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(8.6, 2.3))
        panels = [figure.add_axes((left, 0.2, 0.24, 0.68)) for left in (0.078, 0.378, 0.655)]
        for axes, picture, title in zip(
            panels, pictures, ("clip", "view 1", "view 2"), strict=True
        ):
            image = axes.imshow(
                picture,
                cmap="magma",
                vmin=limits[0],
                vmax=limits[1],
                extent=(0, seconds, -0.5, n_mels - 0.5),
                origin="lower",
                aspect="auto",
                interpolation="none",
            )
            axes.set(title=title, xlabel="seconds")
            axes.set_yticks(np.arange(0, n_mels, 16))
        _frequency_axis(panels[0], params)
        panels[1].set_ylabel("mel bin")
        bar = figure.colorbar(image, figure.add_axes((0.908, 0.2, 0.012, 0.68)))
        bar.set_label("standard deviations")
        bar.outline.set_visible(False)
        return to_svg(figure, name, "Log-mel spectrogram of a clip and its two views")


def color_limits(pictures: Float[np.ndarray, "*n F T"]) -> tuple[float, float]:
    """Return a range in steps of 0.5 that holds all but the most extreme percent of the values."""
    low, high = np.percentile(pictures, (0.5, 99.5))
    return float(np.floor(2 * low) / 2), float(np.ceil(2 * high) / 2)


def mel_bin(hertz: float, params: LogMelParams) -> float:
    """Return the (fractional) mel bin whose center is at a frequency (HTK mel scale)."""

    def mel(f: float) -> float:
        return 2595.0 * float(np.log10(1.0 + f / 700.0))

    low, high = mel(params.f_min), mel(params.f_max)
    return (mel(hertz) - low) / (high - low) * (params.n_mels + 1) - 1


def thin(history: pd.DataFrame) -> pd.DataFrame:
    """Return at most MAX_POINTS rows: means over equally long stretches of the history."""
    if len(history) <= MAX_POINTS:
        return history
    return history.groupby(np.arange(len(history)) * MAX_POINTS // len(history)).mean()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an <svg> element whose ids begin with `name`, unique in a page."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # known to every browser inside HTML
    for before in ('id="', '"#', "url(#"):
        text = text.replace(before, f"{before}{name}-")
    for color, replacement in COLORS.items():
        text = text.replace(color, replacement)
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def _plot(axes: Axes, table: pd.DataFrame, x: str, curves: Sequence[Curve], positive: bool) -> None:
    """Plot columns over `x`; a single point as a dot, "nothing yet" where there is none."""
    columns = [curve.column for curve in curves]
    points = thin(table.reindex(columns=[x, *columns]).astype(float))
    values = points[columns]
    points[columns] = values.where(np.isfinite(values) & ((values > 0) | (not positive)))
    for curve in curves:
        drawn = points[[x, curve.column]].dropna()
        marker = "o" if len(drawn) <= FEW_POINTS else ""
        style: dict[str, Any] = {"color": curve.color, "ls": curve.style, "label": curve.label}
        axes.plot(
            drawn[x], drawn[curve.column], lw=1.4, ms=3, marker=marker, clip_on=False, **style
        )
    if points[columns].isna().all(axis=None):
        axes.text(0.5, 0.5, "nothing yet", ha="center", transform=axes.transAxes)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.yaxis.get_data_interval()
    subs = (1.0,) if WIDE * low < high else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _frequency_axis(axes: Axes, params: LogMelParams) -> None:
    ticks = [f for f in TICKS_HZ if params.f_min <= f <= params.f_max]
    axes.set_yticks([mel_bin(float(f), params) for f in ticks], [f"{f:,}" for f in ticks])
    axes.set_ylabel("Hz")
