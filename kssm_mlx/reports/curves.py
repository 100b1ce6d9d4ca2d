"""Curves of runs that can be hovered, as Plotly's JSON: what `plots` and `comparison` draw as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kssm_mlx.reports.comparison import curve_of_arm, label_of_arm, unit_of, varied_settings
from kssm_mlx.reports.page import Chart
from kssm_mlx.reports.plots import DYNAMICS, OPTIMISATION
from kssm_mlx.reports.run import Run
from kssm_mlx.reports.style import MUTED, PALETTE, moving_average
from kssm_mlx.runs.arms import group_by_arm

MOST_POINTS = 1000  # of one curve; more would make the page slow and show nothing more
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # for who cannot tell colours apart


def draw_loss(run: Run) -> Chart:
    """Training raw and smoothed, validation with its standard error, and the ladder of counting."""
    steps, loss = run.series("train", "loss")
    data = [
        _line(steps, loss, "training", PALETTE[0], opacity=0.3, width=1),
        _line(steps, moving_average(loss, len(loss) // 40), "training, smoothed", PALETTE[0]),
    ]
    at, nats = run.series("eval", "nats_per_token")
    if len(at):
        errors = {"type": "data", "array": [row.get("se") or 0.0 for row in run.evaluations]}
        data.append({**_line(at, nats, "validation ± standard error", PALETTE[1]), "error_y": errors})
        data[-1]["mode"] = "lines+markers"
    ends = [float(steps[0]), float(steps[-1])] if len(steps) else [0.0, 1.0]
    for (rung, value), dash in zip(run.ladder.items(), DASHES):
        data.append(_line(ends, [value, value], f"{rung} {value:.3f}", MUTED, dash=dash, width=1))
    return Chart(data, _layout("Loss", "nats per token"))


def draw_dynamics(run: Run) -> list[Chart]:
    """What the oscillators of every block did, one chart a quantity."""
    return [
        _draw_blocks(run, quantity, title) for quantity, title in DYNAMICS.items() if run.blocks(quantity)
    ]


def draw_optimisation(run: Run) -> list[Chart]:
    """Gradient norm, learning rate and speed."""
    found = []
    for column, title in OPTIMISATION.items():
        steps, values = run.series("train", column)
        layout, data = _layout(title, column), [_line(steps, values, "each step", PALETTE[0])]
        if column == "grad_norm":
            layout["yaxis"]["type"] = "log"
        if column != "lr":  # which is exactly as it was; what fluctuates has its trend
            trend = moving_average(values, len(values) // 40)
            raw = _line(steps, values, "each step", PALETTE[0], opacity=0.3, width=1)
            data = [raw, _line(steps, trend, "smoothed", PALETTE[0])]
        found.append(Chart(data, layout))
    return found


def draw_arms(runs: Sequence[Run]) -> Chart:
    """Validation of every arm: the mean of its seeds between the least and the most, of one run its error."""
    column, unit = unit_of(runs)
    arms = group_by_arm(runs, lambda run: run.recipe)
    varied = varied_settings([arm[0] for arm in arms])
    data = []
    for i, arm in enumerate(arms):
        steps, mean, low, high = curve_of_arm(arm, column)
        name, colour = label_of_arm(arm, varied), PALETTE[i % len(PALETTE)]
        band = {"x": [*steps, *steps[::-1]], "y": [*high.tolist(), *low.tolist()[::-1]], "fill": "toself"}
        quiet = {"mode": "none", "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
        data.append({**band, **quiet, "fillcolor": colour, "opacity": 0.2})
        data.append({**_line(steps, mean, name, colour, dash=DASHES[i % len(DASHES)]), "legendgroup": name})
    return Chart(data, _layout("Validation", unit))


def _draw_blocks(run: Run, quantity: str, title: str) -> Chart:
    data = []
    for i, column in enumerate(run.blocks(quantity)):
        steps, values = run.series("train", column)
        name = f"block {int(column.rpartition('block')[2])}"
        look = {"dash": DASHES[i % len(DASHES)], "width": 1.5}
        if quantity == "psi":  # an angle jumps by a turn: points, because a line would draw the jump
            data.append({**_line(steps, values, name, PALETTE[i % len(PALETTE)]), "mode": "markers"})
        else:
            smooth = moving_average(values, len(values) // 40)
            data.append(_line(steps, smooth, name, PALETTE[i % len(PALETTE)], **look))
    return Chart(data, _layout(title, quantity))


def _line(x, y, name: str, colour: str, *, opacity: float = 1.0, **look: Any) -> dict[str, Any]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    every = -(-len(x) // MOST_POINTS) or 1
    line = {"color": colour, "width": 2, **look}
    points = {"x": x[::every].tolist(), "y": y[::every].tolist()}
    return {"type": "scatter", "mode": "lines", **points, "name": name, "line": line, "opacity": opacity}


def _layout(title: str, unit: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "x": 0, "font": {"size": 15}},
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": unit}},
        "margin": {"l": 60, "r": 10, "t": 50, "b": 90},
        "legend": {"orientation": "h", "y": -0.25},
    }
