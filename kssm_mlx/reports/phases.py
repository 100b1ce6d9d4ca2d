"""The pictures of a monitored run: what was lost on what, where R and U were, and what the controller did.

    loss_metrics.png      the objective and its terms, perplexity, how often each action was taken
    phase_dynamics.png    R, U and R·U with the target of the run, and U against R with the step as colour
    tone_progression.png  what the run's tone profile calls R, over the steps
    frequencies.png       the natural frequencies, mean and spread, and R: where they come together, R rises

Source: docs/background/phase-grafts.md#plots; tones are words here, which every font has.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from kssm_mlx.oscillators.zones import PROFILES, TARGETS, Target
from kssm_mlx.reports.run import Run
from kssm_mlx.reports.style import MUTED, PALETTE, draw_heading, draw_trend, picture

ZONE = {"color": PALETTE[2], "alpha": 0.14, "linewidth": 0}


def plot_phases(run: Run) -> list[Path]:
    """Draw what a run with `[monitor]` has numbers for; nothing for any other run."""
    if not run.recipe.get("monitor") or not len(run.series("train", "R")[0]):
        return []
    folder = run.folder / "plots"
    drawn = [
        plot_losses(run, folder / "loss_metrics.png"),
        plot_zone(run, folder / "phase_dynamics.png"),
        plot_tones(run, folder / "tone_progression.png"),
    ]
    known = len(run.series("train", "omega_std")[0])
    return drawn + ([plot_frequencies(run, folder / "frequencies.png")] if known else [])


def plot_losses(run: Run, path: Path) -> Path:
    """Objective, terms, perplexity, actions."""
    with picture(path, (10, 6.6)) as figure:
        (total, terms), (perplexity, actions) = figure.subplots(2, 2)
        steps, loss = run.series("train", "loss")
        added = {name: run.series("train", name) for name in _terms(run)}
        draw_trend(total, steps, _objective(run), PALETTE[0])
        total.set(title="what is trained on: cross-entropy and terms", xlabel="step")
        for (name, series), colour in zip(added.items(), PALETTE[1:]):
            draw_trend(terms, *series, colour, label=name.removeprefix("term_"))
        draw_trend(terms, steps, loss, PALETTE[0], label="cross-entropy, nats/token")
        terms.set(title="each by itself, as weighted", xlabel="step")
        terms.legend(fontsize=8.5)
        draw_trend(perplexity, steps, np.exp(loss), PALETTE[3])
        perplexity.set(title="perplexity of the training batches", xlabel="step", yscale="log")
        perplexity.yaxis.set_major_formatter("{x:g}")
        perplexity.yaxis.set_minor_formatter("{x:g}")
        _bars(actions, Counter(row["action"] for row in run.of("train") if "action" in row))
        draw_heading(figure, f"{run.name}: losses and actions")
    return path


def plot_zone(run: Run, path: Path) -> Path:
    """R, U, their product, and one against the other, with the run's one target."""
    aim, product = TARGETS[run.recipe["monitor"]["target"]], run.recipe["monitor"].get("product")
    with picture(path, (10, 6.6)) as figure:
        axes = figure.subplots(2, 2).flatten()
        ranges = {"R": aim.R, "U": aim.U, "RU": product}
        titles = {"R": "order parameter R", "U": "uncertainty U, of ln V", "RU": "R · U"}
        for ax, (column, among), colour in zip(axes, ranges.items(), PALETTE):
            draw_trend(ax, *run.series("train", column), colour)
            if among:
                ax.axhspan(*among, **ZONE, label=f"target {among[0]:g} to {among[1]:g}")
                ax.legend(fontsize=8.5)
            ax.set(title=titles[column], xlabel="step", ylim=(-0.02, 1.02))
        _portrait(figure, axes[3], run, aim)
        draw_heading(figure, f"{run.name}: target {run.recipe['monitor']['target']!r} ({aim.used_by})")
    return path


def plot_tones(run: Run, path: Path) -> Path:
    """The tone of every step, and the share of the run each had."""
    profile = run.recipe["monitor"]["profile"]
    names = PROFILES[profile].names
    found = [(row["step"], row["tone"]) for row in run.of("train") if row.get("tone") in names]
    share = Counter(tone for _, tone in found)
    with picture(path, (9, 3.6)) as figure:
        ax = figure.add_subplot()
        steps, codes = [step for step, _ in found], [names.index(tone) for _, tone in found]
        ax.plot(steps, codes, color=MUTED, linewidth=0.7, drawstyle="steps-mid", zorder=1)
        ax.scatter(steps, codes, c=[PALETTE[code] for code in codes], s=9, zorder=2)
        labels = [f"{name} ({share[name] / max(1, len(found)):.0%})" for name in names]
        ax.set_yticks(range(len(names)), labels)
        ax.set(xlabel="step", ylim=(-0.5, len(names) - 0.5))
        ax.set_title(f"{run.name}: tones of profile {profile} ({PROFILES[profile].used_by})")
    return path


def plot_frequencies(run: Run, path: Path) -> Path:
    """Mean natural frequency with one standard deviation of the oscillators, and the order parameter."""
    steps, spread = run.series("train", "omega_std")
    _, mean = run.series("train", "omega_mean")
    with picture(path, (9, 5)) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        above.fill_between(steps, mean - spread, mean + spread, color=PALETTE[0], alpha=0.2, linewidth=0)
        above.plot(steps, mean, color=PALETTE[0], linewidth=1.6)
        said = f"standard deviation {spread[0]:.3g} at first, {spread[-1]:.3g} at the end"
        above.set_title(f"natural frequencies (radians per unit time): mean ± {said}", weight="normal")
        draw_trend(below, *run.series("train", "R"), PALETTE[1])
        below.set(xlabel="step", ylim=(-0.02, 1.02))
        below.set_title("order parameter R", weight="normal")
        draw_heading(figure, f"{run.name}: frequencies")
    return path


def _terms(run: Run) -> list[str]:
    return sorted({column for row in run.of("train") for column in row if column.startswith("term_")})


def _objective(run: Run) -> np.ndarray:
    """Cross-entropy and terms of every step that has a loss."""
    rows = [row for row in run.of("train") if isinstance(row.get("loss"), int | float)]
    return np.array([row["loss"] + sum(row.get(name) or 0.0 for name in _terms(run)) for row in rows])


def _bars(ax: Any, actions: Counter) -> None:
    """How often each action was taken; a word where the run had no controller."""
    ax.set_title("actions")
    if not actions:
        ax.text(0.5, 0.5, "no controller", ha="center", va="center", color=MUTED, transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
        return
    bars = ax.bar(list(actions), list(actions.values()), color=PALETTE[: len(actions)], width=0.6)
    ax.bar_label(bars, [f"{n} ({n / actions.total():.0%})" for n in actions.values()], fontsize=9)
    ax.set_ylabel("steps")
    ax.margins(y=0.12)
    ax.grid(axis="x", visible=False)


def _portrait(figure: Any, ax: Any, run: Run, aim: Target) -> None:
    """U against R, early to late; the target as a rectangle where it names both."""
    from matplotlib.patches import Rectangle

    rows = [r for r in run.of("train") if r.get("R") is not None and r.get("U") is not None]
    R, U, steps = (np.array([row[name] for row in rows]) for name in ("R", "U", "step"))
    points = ax.scatter(U, R, c=steps, cmap="viridis", s=10)
    figure.colorbar(points, ax=ax, label="step")
    low, high = aim.U or (0.0, 1.0)
    ax.add_patch(Rectangle((low, aim.R[0]), high - low, aim.R[1] - aim.R[0], **ZONE))
    ax.set(title="R against U", xlabel="U", ylabel="R", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
