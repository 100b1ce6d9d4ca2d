"""What is added to the cross-entropy, one term at a time, each with a column of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx


class Term(NamedTuple):
    """One summand of the objective: `weight` times the value of `function(logits, targets, trace)`.

    The function gives (value [], parts), parts being what the value is made of, by name.
    """

    name: str
    weight: float
    function: Callable[..., tuple[mx.array, dict[str, mx.array]]]
    reads_logits: bool


def columns(
    terms: Sequence[Term], logits: mx.array | None, targets: mx.array, trace: dict[str, Any]
) -> dict[str, mx.array]:
    """`term_<name>`, the weighted value, and `<name>_<part>` of each term."""
    found = {}
    for term in terms:
        value, parts = term.function(logits, targets, trace)
        found[f"term_{term.name}"] = term.weight * value
        found |= {f"{term.name}_{part}": number for part, number in parts.items()}
    return found
