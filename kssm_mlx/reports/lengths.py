"""How a run solves its task at lengths that it was not trained on, from the rows of its evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kssm_mlx.reports.run import Run
from kssm_mlx.reports.style import MUTED, look_of_curve, picture

WORDS = {"accuracy_last": "at the last place", "accuracy": "mean over the places"}

Columns = dict[str, dict[int, float]]


def length_columns(row: dict[str, Any]) -> Columns:
    """Name -> length -> its number, of what an evaluation has at test lengths, by rising length."""
    found: Columns = {}
    for column, value in row.items():
        name, at, length = column.partition("@")
        if at and isinstance(value, int | float):
            found.setdefault(name, {})[int(length)] = value
    return {name: dict(sorted(values.items())) for name, values in found.items()}


def last_lengths(run: Run) -> tuple[int, Columns]:
    """(step, columns) of the last evaluation at test lengths; (0, {}) where there was none."""
    for row in reversed(run.of("eval")):
        if columns := length_columns(row):
            return row["step"], columns
    return 0, {}


def length_rows(run: Run) -> list[tuple[str, str]]:
    """For a table: what is said of the lengths, and the numbers."""
    _, columns = last_lengths(run)
    return [
        (
            f"accuracy {WORDS.get(name, name)} at {', '.join(map(str, values))} tokens",
            ", ".join(f"{value:.3f}" for value in values.values()),
        )
        for name, values in columns.items()
    ]


def plot_lengths(run: Run, path: Path) -> Path:
    """Accuracy over length, with a line at the length that was trained."""
    step, columns = last_lengths(run)
    trained = run.recipe["train"]["context"]
    with picture(path, (7.5, 4.2)) as figure:
        ax = figure.add_subplot()
        for i, (name, values) in enumerate(columns.items()):
            ax.plot(*zip(*values.items()), label=WORDS.get(name, name), **look_of_curve(i, size=6))
        ax.axvline(trained, color=MUTED, linestyle="--", linewidth=0.9, label=f"trained to {trained}")
        ticks = sorted({trained, *(length for values in columns.values() for length in values)})
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(length) for length in ticks])
        ax.set(xlabel="length, tokens", ylabel="accuracy", ylim=(-0.02, 1.02))
        ax.set_title(f"{run.name}: accuracy over length, step {step}")
        ax.legend(loc="lower left")
    return path
