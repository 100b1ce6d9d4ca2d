"""Pictures of an oscillator simulation: R(t) and phases of one coupling, R(K) of a sweep against theory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kssm_mlx import files
from kssm_mlx.errors import ConfigError
from kssm_mlx.reports.style import INK, MUTED, PALETTE, draw_heading, picture, shades

POINTS = 1500  # oscillators drawn; more only hide each other
STARTS = {"random": "random start", "aligned": "aligned start", "unstable": "unstable"}
TIME = "time (1 / unit of frequency)"
WIDTHS = {"lorentzian": "γ", "gaussian": "σ", "uniform": "Δ"}


def draw(simulation: Any, path: Path) -> None:
    """Write the picture of an `oscillators.simulate.Simulation` to `path` (PNG)."""
    (_draw_sweep if len(simulation.setup.K) > 1 else _draw_run)(simulation, path)


def check_target(path: Path) -> None:
    """Before an hour is spent: can a PNG be put there? Raises: ConfigError if not."""
    if path.suffix != ".png":
        raise ConfigError(f"the picture is a PNG, got {path}; give a name that ends in .png")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(
            f"cannot write {path}: it is a folder, or its folder does not exist; create that first"
        )
    files.require_writable(path)


def describe(setup: Any) -> str:
    """One line that says what was simulated."""
    width = f", {WIDTHS[setup.distribution]} = {setup.width:g}" if setup.distribution in WIDTHS else ""
    symbols = {"lag": "α", "noise": "D", "K2": "K₂", "mass": "m"}
    own = "".join(f", {symbols[o]} = {getattr(setup, o):g}" for o in symbols if o in setup.case.defaults)
    return f"{setup.model}, N = {setup.n}, {setup.distribution}{width}{own}"


# --- one coupling: R(t), where the phases are, which of them are locked ---


def _draw_run(simulation: Any, path: Path) -> None:
    with picture(path, (13, 4.2)) as figure:
        draw_heading(figure, f"{describe(simulation.setup)}, K = {simulation.setup.K[0]:g}")
        time, where, locked = figure.subplots(1, 3, width_ratios=(1.5, 1, 1.2))
        _order_in_time(time, simulation)
        if simulation.phases.ndim == 3:
            _sphere(where, locked, simulation.phases[-1])
        else:
            _draw_circle(where, simulation.phases[-1], simulation.omega)
            _locking(locked, simulation)


def _order_in_time(ax: Any, simulation: Any) -> None:
    for i, row in enumerate(simulation.rows):
        label = f"{STARTS[row.start]}: R = {row.R:.4f}"
        ax.plot(simulation.time, simulation.R[:, i], color=PALETTE[i], linewidth=1.4, label=label)
        if np.isfinite(row.theory):
            label = f"theory, N → ∞: R = {row.theory:.4f}"
            ax.axhline(row.theory, color=PALETTE[i], linestyle="--", linewidth=1.2, label=label)
    ax.set(title="order parameter", xlabel=TIME, ylabel="R", ylim=(0, 1.03), xlim=(0, simulation.time[-1]))
    ax.legend(loc="best", fontsize=8)


def _draw_circle(ax: Any, theta: np.ndarray, omega: np.ndarray) -> None:
    """Final phases as dots on the unit circle, coloured by frequency rank, jittered outwards to be seen."""
    chosen = np.linspace(0, len(theta) - 1, min(POINTS, len(theta))).astype(int)
    radius = 1 + 0.12 * np.random.default_rng(0).uniform(0, 1, len(chosen))
    x, y = radius * np.cos(theta[chosen]), radius * np.sin(theta[chosen])
    ranked = np.ptp(omega) > 0
    colour = (
        {"c": chosen / len(theta), "cmap": "coolwarm", "vmin": 0, "vmax": 1} if ranked else {"c": PALETTE[0]}
    )
    dots = ax.scatter(x, y, **colour, s=5, alpha=0.7, linewidths=0)
    z = np.exp(1j * theta.astype(np.float64)).mean()
    ax.annotate(
        "", (z.real, z.imag), (0, 0), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.8}
    )
    ax.set(title="final phases and their mean", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    ax.axis("off")
    if ranked:
        bar = ax.figure.colorbar(dots, ax=ax, shrink=0.6, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["lowest ω", "median ω", "highest ω"], fontsize=8)


def _locking(ax: Any, simulation: Any) -> None:
    """Phases behind or ahead of the mean against frequency; of identical oscillators their histogram."""
    theta, omega = simulation.phases[-1].astype(np.float64), simulation.omega
    ahead = np.angle(np.exp(1j * theta) * np.conj(np.exp(1j * theta).mean()))
    ax.set(title="phase relative to the mean")
    ticks = {"ticks": [-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi], "labels": ["−π", "−π/2", "0", "π/2", "π"]}
    if np.ptp(omega) == 0:
        ax.hist(ahead, bins=60, range=(-np.pi, np.pi), density=True, color=PALETTE[0])
        ax.set_xticks(**ticks)
        ax.set(xlabel="θ − ψ (radians)", ylabel="density")
        return
    chosen = np.linspace(0, len(theta) - 1, min(POINTS, len(theta))).astype(int)
    reach = 1.6 * np.quantile(np.abs(omega), 0.85)
    ax.scatter(omega[chosen], ahead[chosen], s=5, color=PALETTE[0], alpha=0.6, linewidths=0)
    ax.set_yticks(**ticks)
    ax.set(
        xlabel="natural frequency ω (radians per unit time)", ylabel="θ − ψ (radians)", xlim=(-reach, reach)
    )


def _sphere(disc: Any, ax: Any, x: np.ndarray) -> None:
    """Final vectors seen from the side, the mean pointing right, and how far along it they lie."""
    mean = x.mean(axis=0)
    along = mean / np.linalg.norm(mean)
    across = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
    across /= np.linalg.norm(across)
    chosen = slice(0, POINTS)
    disc.scatter(x[chosen] @ along, x[chosen] @ across, s=5, color=PALETTE[0], alpha=0.5, linewidths=0)
    tip = (np.linalg.norm(mean), 0)
    disc.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.8})
    disc.set(title="final vectors and their mean", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    disc.plot(*(f(np.linspace(0, 2 * np.pi, 200)) for f in (np.cos, np.sin)), color=MUTED, linewidth=0.8)
    disc.axis("off")
    ax.hist(x @ along, bins=50, range=(-1, 1), density=True, color=PALETTE[0])
    ax.set(title="projection on the mean", xlabel="cosine to the mean direction", ylabel="density")
    ax.set_xticks([-1, -0.5, 0, 0.5, 1])


# --- a sweep: R(K) against theory, and how each run got there ---


def _draw_sweep(simulation: Any, path: Path) -> None:
    with picture(path, (11.5, 4.4)) as figure:
        draw_heading(figure, describe(simulation.setup))
        transition, time = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _transition(transition, simulation)
        _runs_in_time(time, simulation)


def _transition(ax: Any, simulation: Any) -> None:
    K = np.asarray(simulation.setup.K)
    for i, start in enumerate(simulation.setup.case.starts):
        rows = [row for row in simulation.rows if row.start == start]
        spread = [row.deviation for row in rows]
        label = f"measured, {STARTS[start]}"
        ax.errorbar(
            K, [row.R for row in rows], spread, fmt="o", ms=4.5, color=PALETTE[i], label=label, zorder=3
        )
    dense = np.linspace(K.min(), K.max(), 400)
    styles = {"random": ("-", PALETTE[0]), "aligned": ("-", PALETTE[1]), "unstable": (":", MUTED)}
    for branch, R in simulation.curves(dense).items():
        line, colour = styles[branch]
        R[1:][np.abs(np.diff(R)) > 0.3] = np.nan  # a jump is a jump, not a steep line
        if np.isfinite(R).any():
            label = f"theory, N → ∞, {STARTS[branch]}"
            ax.plot(dense, R, line, color=colour, linewidth=1.6, label=label, alpha=0.8)
    for name, value in simulation.thresholds.items():
        if K.min() <= value <= K.max():
            ax.axvline(value, color=MUTED, linestyle="--", linewidth=1)
            ax.annotate(f" {name} = {value:.3g}", (value, 1.0), fontsize=8, color=MUTED, va="top")
    ax.set(title="order parameter against coupling", xlabel="coupling K", ylabel="R", ylim=(-0.02, 1.05))
    ax.legend(loc="best", fontsize=8)


def _runs_in_time(ax: Any, simulation: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    K, starts = simulation.setup.K, simulation.setup.case.starts
    colours = shades(len(K))
    for i in range(simulation.R.shape[1]):
        ax.plot(simulation.time, simulation.R[:, i], color=colours[i // len(starts)], linewidth=1)
    scale = ScalarMappable(Normalize(min(K), max(K)), ListedColormap(colours))
    ax.figure.colorbar(scale, ax=ax, label="coupling K")
    ax.set(
        title="each run in time", xlabel=TIME, ylabel="R", ylim=(-0.02, 1.05), xlim=(0, simulation.time[-1])
    )
