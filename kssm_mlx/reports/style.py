"""How every picture looks: one palette, quiet axes, words for labels, drawn without a display."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from kssm_mlx import files

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # beside the colours, for who cannot tell these apart
MOST_BANDS = 4  # curves whose spread is drawn as a band: more are mud
INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
# Okabe & Ito 2008, told apart with any kind of colour vision; the yellow darkened for white paper.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#b8a000", "#4d4d4d")
RC = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


@contextmanager
def picture(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A Figure in the house style that is written to `path`, whole or not at all, when the block ends."""
    # It logs where it keeps its cache when a home cannot be written to, which is nobody's business here.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, RC)), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, and said in the card.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    files.replace(path, buffer.getvalue())


def shades(n: int) -> list[Any]:
    """n colours of one family from early to late blocks, dark to light."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0.05, 0.8, n)))


def look_of_curve(i: int, size: float = 4) -> dict[str, Any]:
    """Colour, marker and line of the i-th of several curves, the same for no two of the first 64."""
    turns, colour = divmod(i, len(PALETTE))
    return {
        "color": PALETTE[colour],
        "marker": MARKERS[(i + turns) % len(MARKERS)],
        "markersize": size,
        "linestyle": "--" if turns % 2 else "-",
    }


class Curve(NamedTuple):
    """What one arm has done: the mean of its seeds and the least and the most of them, at every x."""

    x: Sequence[float]
    mean: Any
    low: Any
    high: Any


def draw_curve(
    ax: Any, curve: Curve, i: int, n: int, label: str, *, size: float = 4, log: bool = False
) -> None:
    """The i-th of n curves with its spread: a band, or bars side by side where so many bands would be mud.

    log: x is shown by its logarithm.
    """
    look, x = look_of_curve(i, size), np.asarray(curve.x, float)
    if n <= MOST_BANDS:
        ax.fill_between(x, curve.low, curve.high, color=look["color"], alpha=0.18, lw=0)
    else:
        at = np.log(x) if log else x
        # As far apart as there is room, and never so far that a point seems to be another x's.
        room = min(0.4 * np.diff(at).min(), 0.04 * np.ptp(at)) if len(at) > 1 else 0.0
        at = at + room * ((i - (n - 1) / 2) / n)
        x = np.exp(at) if log else at
        ax.vlines(x, curve.low, curve.high, color=look["color"], lw=1.2, alpha=0.7)
    ax.plot(x, curve.mean, label=label, **look)


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Moving average over the values at most width/2 away; at the ends over those that exist."""
    sums, at, n = np.concatenate([[0.0], np.cumsum(values)]), np.arange(len(values)), len(values)
    first, last = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, n)
    return (sums[last] - sums[first]) / (last - first)


def draw_trend(ax: Any, steps: np.ndarray, values: np.ndarray, colour: Any, label: str | None = None) -> None:
    """The values as they are, pale, and their moving average over a fortieth of the run on top."""
    ax.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
    ax.plot(steps, moving_average(values, len(values) // 40), color=colour, linewidth=1.6, label=label)


def draw_heading(figure: Any, text: str) -> None:
    """The title of a picture with several panels."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=12, weight="bold")
