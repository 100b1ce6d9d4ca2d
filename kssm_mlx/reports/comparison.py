"""Several runs side by side: one picture of their validation curves, what may be said, and one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kssm_mlx import files
from kssm_mlx.errors import CheckpointError
from kssm_mlx.reports.card import format_measure, markdown_table
from kssm_mlx.reports.claims import describe_scored, state_claims
from kssm_mlx.reports.run import Run
from kssm_mlx.reports.style import MUTED, Curve, draw_curve, look_of_curve, picture
from kssm_mlx.runs.arms import group_by_arm
from kssm_mlx.terminal import printable

HEADER = ("run", "differs in", "parameters", "steps", "nats/token", "bits/byte", "context gain")


def write_comparison(runs: list[Run], folder: Path) -> list[Path]:
    """Write comparison.png and comparison.md into `folder`; returns their paths.

    Curves are in nats/token where all runs share data and tokenizer, else in bits/byte, which compares across
    tokenizers.

    Raises: CheckpointError for a folder that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = plot_validation(runs, folder / "comparison.png")
        said = "".join(f"- {sentence}\n" for sentence in state_claims(runs))
        page = f"# Comparison\n\n![validation]({drawn.name})\n\n{said}\n{summary(runs)}\n"
        files.replace(folder / "comparison.md", printable(page))
    except OSError as e:
        raise CheckpointError(
            f"cannot write the comparison to {folder}: {(e.strerror or str(e)).lower()}"
        ) from None
    return [drawn, folder / "comparison.md"]


def plot_validation(runs: list[Run], path: Path) -> Path:
    """Validation over steps, one curve per arm: of several seeds their mean, between the least and the most;
    of one run with its standard error over windows.
    """
    column, unit = unit_of(runs)
    arms = group_by_arm(runs, lambda run: run.recipe)
    varied = varied_settings([arm[0] for arm in arms])
    with picture(path, (9, 4.2 + 0.25 * len(arms))) as figure:
        ax = figure.add_subplot()
        for i, arm in enumerate(arms):
            _draw_arm(ax, arm, column, i, len(arms), label_of_arm(arm, varied))
        bigram = runs[0].ladder.get("bigram")
        if _same_tokens(runs) and not describe_scored(runs) and bigram:
            ax.axhline(bigram, color=MUTED, linewidth=0.9, linestyle="--", label=f"bigram {bigram:.3f}")
        ax.set(xlabel="step", ylabel=unit, title="validation")
        figure.legend(loc="outside lower left", ncols=1)
    return path


def unit_of(runs: Sequence[Run]) -> tuple[str, str]:
    """The column of the evaluations that these runs have in common, and its unit."""
    if _same_tokens(runs):
        return "nats_per_token", "nats per token"
    return "bits_per_byte", "bits per byte"


def label_of_arm(arm: list[Run], varied: list[str]) -> str:
    """What differs from the other arms, as "kappa 0", or the name of its first run; and how many seeds."""
    settings = _settings(arm[0], {*varied})
    said = ", ".join(f"{key.rpartition('.')[2]} {settings.get(key, 'unset')}" for key in varied[:4])
    seeds = f" ({len(arm)} seeds)" if len(arm) > 1 else ""
    return printable(f"{said or arm[0].name}{seeds}")


def varied_settings(runs: list[Run]) -> list[str]:
    """The settings that are not the same in all of them, the seed aside."""
    return [key for key in _find_varied(_list_settings(runs)) if key != "train.seed"]


def curve_of_arm(arm: Sequence[Run], column: str) -> Curve:
    """Steps that all seeds evaluated, the mean there, and a band: from the least to the most, of one run its
    standard error over windows.
    """
    curves = [dict(zip(*run.series("eval", column), strict=True)) for run in arm]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves])
    mean = values.mean(axis=0)
    if len(arm) > 1:
        return Curve(steps, mean, values.min(axis=0), values.max(axis=0))
    error = mean * _relative_error(arm[0], steps)
    return Curve(steps, mean, mean - error, mean + error)


def _draw_arm(ax: Any, arm: list[Run], column: str, i: int, arms: int, label: str) -> None:
    curve = curve_of_arm(arm, column)
    if not curve.x:
        ax.plot([], [], label=f"{label}: no evaluation", **look_of_curve(i))
        return
    draw_curve(ax, curve, i, arms, f"{label}: best {curve.mean.min():.3f}")


def _relative_error(run: Run, steps: list[float]) -> np.ndarray:
    """The standard error over windows as a share of the loss, the same in every unit; 0 where unknown."""
    rows = {row["step"]: row for row in run.evaluations}
    known = [rows.get(step, {}) for step in steps]
    return np.array([(row.get("se") or 0.0) / (row.get("nats_per_token") or 1.0) for row in known])


def summary(runs: list[Run]) -> str:
    """One row per run; "differs in" lists the settings that are not the same in all of them.

    Nats of tokens that are not the same stand in no column together.
    """
    return markdown_table(HEADER, summary_rows(runs))


def summary_rows(runs: list[Run]) -> list[tuple[str, ...]]:
    """One row per run, under HEADER."""
    settings = _list_settings(runs)
    varied = _find_varied(settings)
    nats = _same_tokens(runs)
    return [_row(run, s, varied, nats) for run, s in zip(runs, settings)]


def _same_tokens(runs: Sequence[Run]) -> bool:
    return len({str(run.recipe.get("data")) for run in runs}) == 1


def _row(run: Run, settings: dict[str, Any], varied: list[str], nats: bool) -> tuple[str, ...]:
    best = run.best or {}
    parameters = run.manifest.get("parameters")
    return (
        run.name,
        ", ".join(f"{key} {settings[key]}" for key in varied if key in settings),
        f"{parameters:,}" if parameters else "not recorded",
        str(run.steps),
        format_measure(best.get("nats_per_token"), best.get("se")) if nats else "other tokens",
        format_measure(best.get("bits_per_byte")),
        format_measure(run.measured("context_gain"), run.measured("context_gain_se"), 3),
    )


def _find_varied(settings: list[dict[str, Any]]) -> list[str]:
    """The keys whose values are not the same in all."""
    return sorted({key for s in settings for key in s if len({repr(t.get(key)) for t in settings}) > 1})


def _list_settings(runs: list[Run]) -> list[dict[str, Any]]:
    """Of each run the settings that any of their recipes states."""
    stated = {key for run in runs for key in _flatten(run.recipe)}
    return [_settings(run, stated) for run in runs]


def _settings(run: Run, stated: set[str]) -> dict[str, Any]:
    """Its recipe as dotted keys, {"model.kappa": 1.0}; of a key that it leaves out what its model had."""
    model = {f"model.{key}": value for key, value in (run.recipe.get("configuration") or {}).items()}
    return {key: value for key, value in model.items() if key in stated} | _flatten(run.recipe)


def _flatten(recipe: dict[str, Any]) -> dict[str, Any]:
    sections = {s: v for s, v in recipe.items() if s in ("data", "model", "train") and isinstance(v, dict)}
    return {
        f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()
    }
