"""Several runs side by side: one picture of their validation curves, what may be said, and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kssm_mlx import files
from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.reports.card import measure, table
from kssm_mlx.reports.claims import claims
from kssm_mlx.reports.run import Run
from kssm_mlx.reports.style import MUTED, PALETTE, picture

HEADER = ("run", "differs in", "parameters", "steps", "nats/token", "bits/byte", "context gain")


def write_comparison(runs: list[Run], folder: Path) -> list[Path]:
    """Write comparison.png and comparison.md into `folder`; returns their paths.

    Curves are in nats/token where all runs share data and tokenizer, else in bits/byte, which compares across
    tokenizers.

    Raises: ConfigError for two runs of one name, CheckpointError for a folder that cannot be written.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two of the runs are called {max(names, key=names.count)!r}; rename one folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = plot_validation(runs, folder / "comparison.png")
        said = "".join(f"- {sentence}\n" for sentence in claims(runs))
        page = f"# Comparison\n\n![validation]({drawn.name})\n\n{said}\n{summary(runs)}\n"
        files.replace(folder / "comparison.md", page)
    except OSError as e:
        raise CheckpointError(
            f"cannot write the comparison to {folder}: {(e.strerror or str(e)).lower()}"
        ) from None
    return [drawn, folder / "comparison.md"]


def plot_validation(runs: list[Run], path: Path) -> Path:
    """Validation over steps, one curve per run, best value in the legend."""
    same_text = _same_tokens(runs)
    column, unit = ("nats_per_token", "nats per token") if same_text else ("bits_per_byte", "bits per byte")
    with picture(path, (9, 5.2)) as figure:
        ax = figure.add_subplot()
        for i, run in enumerate(runs):
            steps, values = run.series("eval", column)
            best = f", best {values.min():.3f}" if len(values) else ", no evaluation"
            ax.plot(
                steps,
                values,
                marker="o",
                markersize=3.5,
                color=PALETTE[i % len(PALETTE)],
                label=run.name + best,
            )
        bigram = runs[0].ladder.get("bigram")
        if same_text and bigram:
            ax.axhline(bigram, color=MUTED, linewidth=0.9, linestyle="--", label=f"bigram {bigram:.3f}")
        ax.set(xlabel="step", ylabel=unit, title="validation")
        ax.legend(loc="best", frameon=True, facecolor="white", edgecolor="none", framealpha=0.9)
    return path


def summary(runs: list[Run]) -> str:
    """One row per run; "differs in" lists the settings that are not the same in all of them.

    Nats of tokens that are not the same stand in no column together.
    """
    settings = [_settings(run.recipe) for run in runs]
    varied = sorted({key for s in settings for key in s if len({repr(t.get(key)) for t in settings}) > 1})
    nats = _same_tokens(runs)
    return table(HEADER, (_row(run, s, varied, nats) for run, s in zip(runs, settings)))


def _same_tokens(runs: list[Run]) -> bool:
    return len({str(run.recipe.get("data")) for run in runs}) == 1


def _row(run: Run, settings: dict[str, Any], varied: list[str], nats: bool) -> tuple[str, ...]:
    best = run.best or {}
    parameters = run.manifest.get("parameters")
    return (
        run.name,
        ", ".join(f"{key} {settings[key]}" for key in varied if key in settings),
        f"{parameters:,}" if parameters else "not recorded",
        str(run.steps),
        measure(best.get("nats_per_token"), best.get("se")) if nats else "other tokens",
        measure(best.get("bits_per_byte")),
        measure(run.measured("context_gain"), run.measured("context_gain_se"), 3),
    )


def _settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe as dotted keys: {"model.kappa": 1.0}."""
    sections = {s: v for s, v in recipe.items() if s in ("data", "model", "train") and isinstance(v, dict)}
    return {
        f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()
    }
