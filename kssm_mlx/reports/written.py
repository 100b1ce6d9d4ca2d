"""A text as it was written, coloured by what the model was in, and the same over tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kssm_mlx.reports.style import INK, MUTED, PALETTE, draw_heading, picture, shades
from kssm_mlx.terminal import printable

LEAST_LINES = 4  # room for a colour bar that can be read
COLUMNS, MOST_LINES = 88, 40  # of characters, of a text that is drawn
WIDTH = 9.0  # inches
LINE, PANEL = 0.21, 2.1  # inches of height
LEAST_SPAN = 0.01  # of an axis and of colours, or noise of float32 would look like signal
ADVANCE = 0.602  # of a character of DejaVu Sans Mono, em
LABELS = {
    "R": "order parameter R",
    "psi": "mean phase psi (radians)",
    "omega": "change of psi (radians per token)",
    "U": "entropy of the prediction / ln V",
}
CYCLIC = ("psi", "theta")

Rows = Sequence[dict[str, Any]]


def plot_written(
    rows: Rows,
    names: Sequence[str],
    path: Path,
    heading: str,
    held: Mapping[str, float] = MappingProxyType({}),
) -> Path:
    """The rows of a trace (generation/trace.py) of one text; the first of `names` colours it.

    held: the quantities that were held, and at which value.
    """
    values = np.array([_mean_of(row, names[0]) for row in rows])
    cells = list(lay_out([row["text"] for row in rows]))
    lines = max(LEAST_LINES, max((line for _, line, _, _ in cells), default=0) + 1)
    with picture(path, (WIDTH, 1.0 + LINE * lines + PANEL * len(names))) as figure:
        axes = figure.subplots(1 + len(names), 1, height_ratios=[LINE * lines, *[PANEL] * len(names)])
        _draw_text(figure, axes[0], cells, lines, values, names[0])
        for ax, name in zip(axes[1:], names, strict=True):
            _draw_course(ax, rows, name)
            said = LABELS.get(name, name) + (f", held at {held[name]:g}" if name in held else "")
            ax.set_title(said, weight="normal")
        axes[-1].set_xlabel("token")
        cut = f", its first {MOST_LINES} lines" if lines >= MOST_LINES else ""
        draw_heading(figure, f"{printable(heading)}: coloured by {names[0]}{cut}")
    return path


def lay_out(pieces: Sequence[str]) -> Iterator[tuple[int, int, int, str]]:
    """Token, line, column and character of every character that has a place; a line break is drawn as one."""
    line = column = 0
    for token, piece in enumerate(pieces):
        for character in printable(piece):
            if line >= MOST_LINES:
                return
            yield token, line, column, {"\n": "\u21b5", "\t": " "}.get(character, character)
            column += 1
            if character == "\n" or column == COLUMNS:
                line, column = line + 1, 0


def _draw_text(figure: Any, ax: Any, cells: list, lines: int, values: np.ndarray, name: str) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    low, high = (-np.pi, np.pi) if name in CYCLIC else find_span(values)
    # A first token has no change.
    shown = colormaps["twilight" if name in CYCLIC else "viridis"].with_extremes(bad="white")
    colours = ScalarMappable(Normalize(low, high), shown)
    fill = [colours.to_rgba(values[token]) for token, *_ in cells]
    boxes = [Rectangle((column, line), 1, 1) for _, line, column, _ in cells]
    ax.add_collection(PatchCollection(boxes, facecolors=fill, edgecolors=fill, linewidths=0.2))
    size = WIDTH * 0.86 / COLUMNS * 72 / ADVANCE
    for (_, line, column, character), colour in zip(cells, fill, strict=True):
        ink = "white" if np.dot(colour[:3], (0.3, 0.59, 0.11)) < 0.5 else INK
        look = {"family": "DejaVu Sans Mono", "size": size, "ha": "center", "va": "center"}
        ax.text(column + 0.5, line + 0.55, character, color=ink, parse_math=False, **look)
    ax.set(xlim=(0, COLUMNS), ylim=(lines, 0))
    ax.axis("off")
    ticks = [low, (low + high) / 2, high]
    bar = figure.colorbar(colours, ax=ax, aspect=max(4, lines), pad=0.01, ticks=ticks, format="%.3f")
    bar.set_label(name)
    bar.outline.set_visible(False)


def _draw_course(ax: Any, rows: Rows, name: str) -> None:
    """Each block and their mean over tokens; an angle as points, because a line would draw its jumps."""
    from matplotlib.ticker import MaxNLocator

    at, look = np.arange(len(rows)), "." if name in CYCLIC else "-"
    if name != "U":
        blocks = np.array([row[name]["blocks"] for row in rows], dtype=float).T
        if len(blocks) == 1:
            blocks = blocks[:0]  # it is the mean
        for number, (block, colour) in enumerate(zip(blocks, shades(len(blocks)), strict=True)):
            ax.plot(at, block, look, color=colour, linewidth=0.9, markersize=3, label=f"block {number}")
    mean = np.array([_mean_of(row, name) for row in rows])
    ax.plot(at, mean, look, color=PALETTE[1], linewidth=1.6, markersize=4, label="mean")
    low, high = find_span(np.concatenate([line.get_ydata() for line in ax.lines]))
    margin = 0.05 * (high - low)
    # The same tokens in every panel, although the first has no change.
    ax.set(xlim=(-0.5, len(rows) - 0.5), ylim=(low - margin, high + margin))
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(ax.lines) > 1:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), labelcolor=MUTED)


def find_span(values: np.ndarray) -> tuple[float, float]:
    """The least and the largest of the finite values, `LEAST_SPAN` apart at least; around 0 without any."""
    finite = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
    low, high = float(finite.min()), float(finite.max())
    missing = max(0.0, LEAST_SPAN - (high - low)) / 2
    return low - missing, high + missing


def _mean_of(row: dict[str, Any], name: str) -> float:
    value = row[name] if name == "U" else row[name]["mean"]
    return float("nan") if value is None else value
