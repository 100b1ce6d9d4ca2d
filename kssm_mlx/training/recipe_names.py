"""Names in a recipe: numbers that there are of a run, and what a key was meant to be that there is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kssm_mlx.data.tasks import Task
from kssm_mlx.training.curriculum.lengths import SCORES

# What keys are called elsewhere, where no letters are alike.
MEANT = {
    **{"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "dtype": "precision"},
    **dict.fromkeys(("epochs", "iterations", "iters", "max_steps", "updates"), "steps"),
    **dict.fromkeys(("seq_len", "sequence_length", "block_size", "length", "max_length"), "context"),
    **dict.fromkeys(("interval", "freq", "frequency"), "every"),
    **dict.fromkeys(("path", "file", "dataset", "corpus"), "source"),
}
# Numbers beside those of an evaluation that reports know: of a row, of one with [monitor], of a check.
OF_ROWS = ("loss", "R_block*", "psi_block*", "h_block*", "U_block*", "lyapunov_block*", "term_*", "knob_*")
OF_MONITOR = (
    *("R", "U", "RU", "phase_mean", "phase_std", "omega_mean", "omega_std"),
    *("residence_R", "residence_joint"),
)
OF_CHECKS = ("context_gain",)


def known_metrics(task: Task | None) -> tuple[str, ...]:
    """The numbers of an evaluation that a phase may wait for."""
    places = task.places(task.sample(0, "validation", 0).ids) if task else ()
    return (
        *("nats_per_token", "perplexity", "bits_per_byte", "accuracy"),
        *(["skill"] if task else []),
        *(f"{kind}_{place}" for kind in ("accuracy", "nats", "skill") for place in places),
    )


def reported_metrics(task: Task | None, monitored: bool) -> tuple[str, ...]:
    """The numbers that `kssm report` finds in a run: names, and patterns such as "term_*"."""
    lengths = [f"{score}@{n}" for n in getattr(task, "test_lengths", ()) for score in SCORES]
    return (*known_metrics(task), *lengths, *OF_ROWS, *(OF_MONITOR if monitored else ()), *OF_CHECKS)


def guess_key(recipe: Any, key: str) -> str:
    """A hint for a key that has no section or another's. recipe: the class whose fields are the sections."""
    name = MEANT.get(key, key)
    homes = [section for section, keys in _list_sections(recipe) if name in keys]
    return f"; did you mean '{homes[0]}.{name}'?" if homes else ""


def _list_sections(recipe: Any) -> Iterator[tuple[str, set[str]]]:
    """Sections and their keys; those that may be left out too."""
    for name, field in recipe.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(kind, "model_fields"):
                yield name, set(kind.model_fields)
