"""The three pictures of one run: what it learned, what its oscillators did, how the optimizer went."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from kssm_mlx.reports.lengths import last_lengths, plot_lengths
from kssm_mlx.reports.phases import plot_phases
from kssm_mlx.reports.run import Run
from kssm_mlx.reports.style import (
    INK,
    MUTED,
    PALETTE,
    draw_heading,
    draw_trend,
    look_of_curve,
    picture,
    shades,
)

DYNAMICS = {
    "R": "order parameter R (0 incoherent, 1 in phase)",
    "psi": "mean phase psi (radians)",
    "h": "size of the field |h|",
    "lyapunov": "Lyapunov exponent per token (nats)",
}
MOST_NUMBERS = 6  # of one check in a panel
OPTIMISATION = {
    "grad_norm": "gradient norm before clipping",
    "lr": "learning rate",
    "tokens_per_second": "tokens per second",
}


def plot_all(run: Run) -> list[Path]:
    """Draw every picture the run has numbers for into its plots/ folder; returns their paths."""
    folder = run.folder / "plots"
    folder.mkdir(exist_ok=True)
    drawn = [plot_loss(run, folder / "loss.png")]
    if any(run.blocks(quantity) for quantity in DYNAMICS):
        drawn.append(plot_dynamics(run, folder / "dynamics.png"))
    drawn += [plot_optimisation(run, folder / "optimisation.png"), *plot_phases(run)]
    if last_lengths(run)[1]:
        drawn.append(plot_lengths(run, run.folder / "plots" / "lengths.png"))
    return drawn + ([plot_probes(run, folder / "probes.png")] if run.probes else [])


def plot_probes(run: Run, path: Path) -> Path:
    """The numbers of the checks that were asked along the way, one panel a check."""
    ids = list(dict.fromkeys(row["id"] for row in run.probes))
    with picture(path, (9, 0.6 + 2.6 * len(ids))) as figure:
        for ax, id in zip(figure.subplots(len(ids), 1, squeeze=False).flatten(), ids, strict=True):
            rows = [row for row in run.probes if row["id"] == id]
            names = list(dict.fromkeys(name for row in rows for name in row["numbers"]))[:MOST_NUMBERS]
            for i, name in enumerate(names):
                known = [(row["step"], row["numbers"][name]) for row in rows if name in row["numbers"]]
                ax.plot(*zip(*known, strict=True), label=name, **look_of_curve(i))
            ax.set(xlabel="step", title=f"{id}: {rows[0]['title']}")
            if names:
                ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        draw_heading(figure, f"{run.name}: checks along the way")
    return path


def plot_loss(run: Run, path: Path) -> Path:
    """Training loss raw and smoothed, validation with its standard error, and the ladder of counting."""
    with picture(path, (9, 5.2)) as figure:
        ax = figure.add_subplot()
        draw_trend(ax, *run.series("train", "loss"), PALETTE[0], label="training, raw and smoothed")
        _validation(ax, run)
        _ladder(ax, run)
        ax.set(xlabel="step", ylabel="nats per token", title=f"{run.name}: loss")
        _bits_axis(ax, run)
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return path


def plot_dynamics(run: Run, path: Path) -> Path:
    """R, psi, |h| and the Lyapunov exponent of every block over training, one panel each."""
    shown = [quantity for quantity in DYNAMICS if run.blocks(quantity)]
    with picture(path, (10, 3.1 * math.ceil(len(shown) / 2))) as figure:
        axes = figure.subplots(math.ceil(len(shown) / 2), 2, sharex=True, squeeze=False).flatten()
        for ax, quantity in zip(axes, shown):
            _blocks(ax, run, quantity)
        for ax in axes[len(shown) :]:
            ax.remove()
        for ax in axes[: len(shown)][-2:]:
            ax.set_xlabel("step")
        draw_heading(figure, f"{run.name}: oscillators, mean over batch, time and groups")
        handles, labels = axes[0].get_legend_handles_labels()
        if len(labels) <= 12:
            # Below: beside the heading there is room for three.
            figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return path


def plot_optimisation(run: Run, path: Path) -> Path:
    """Gradient norm, learning rate and speed, with a line wherever the run was interrupted or resumed."""
    with picture(path, (9, 7)) as figure:
        for ax, (column, title) in zip(figure.subplots(3, 1, sharex=True), OPTIMISATION.items()):
            _curve(ax, *run.series("train", column), column)
            ax.set_title(title, weight="normal")
            for event in run.of("event"):
                ax.axvline(event["step"], color=MUTED, linewidth=0.8, linestyle=":")
        ax.set_xlabel("step")
        draw_heading(figure, f"{run.name}: optimisation")
    return path


def _validation(ax: Any, run: Run) -> None:
    steps, loss = run.series("eval", "nats_per_token")
    if not len(steps):
        return
    errors = [row.get("se") or 0.0 for row in run.evaluations]
    style = {"color": PALETTE[1], "marker": "o", "markersize": 4, "linewidth": 1.4, "capsize": 2}
    label = f"validation ± standard error, best {loss.min():.3f}"
    ax.errorbar(steps, loss, yerr=errors, label=label, **style)


def _ladder(ax: Any, run: Run) -> None:
    for rung, nats in run.ladder.items():
        ax.axhline(nats, color=MUTED, linewidth=0.9, linestyle="--", zorder=1)
        at = {"xy": (0.99, nats), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        ax.annotate(f"{rung} {nats:.3f}", **at, xytext=(0, 3), color=MUTED, fontsize=8.5, ha="right")


def _bits_axis(ax: Any, run: Run) -> None:
    """A second scale in bits per byte, which compares across tokenizers."""
    best = run.best
    if best and best.get("bits_per_byte"):
        ratio = best["bits_per_byte"] / best["nats_per_token"]
        right = ax.secondary_yaxis("right", functions=(lambda y: y * ratio, lambda y: y / ratio))
        right.set_ylabel("bits per byte")
        right.spines["right"].set_visible(True)


def _blocks(ax: Any, run: Run, quantity: str) -> None:
    columns = run.blocks(quantity)
    for column, colour in zip(columns, shades(len(columns))):
        steps, values = run.series("train", column)
        number = int(column.rpartition("block")[2])
        if quantity == "psi":  # an angle jumps by a turn: points, because a line would draw the jump
            ax.plot(steps, values, ".", markersize=2, color=colour)
            ax.set_ylim(-np.pi, np.pi)
        else:
            draw_trend(ax, steps, values, colour, label=f"block {number}")
    if quantity == "lyapunov":
        ax.axhline(0, color=INK, linewidth=0.8)
    ax.set_title(DYNAMICS[quantity], weight="normal")


def _curve(ax: Any, steps: np.ndarray, values: np.ndarray, column: str) -> None:
    """The learning rate exactly as it was, what fluctuates with its trend, the gradient on a log axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if column == "lr":
        ax.plot(steps, values, color=PALETTE[0], linewidth=1.6)
    else:
        draw_trend(ax, steps, values, PALETTE[0])
    if column == "grad_norm":
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
