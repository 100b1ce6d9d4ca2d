"""The transformer: facts."""

from __future__ import annotations

from typing import Any

from kssm_mlx.models.families.family import Family, UnitTable, claims


def units(c: Any, count: int) -> UnitTable:
    """The heads."""
    D = c.d_model
    qkv = [
        (role, f"qkv.{name}", 0, i * D, D)
        for i, role in enumerate(("routing", "routing", "slack"))
        for name in ("weight", "bias")
    ]
    return UnitTable("attention", c.n_heads, claims(*qkv, ("slack", "out.weight", 1, 0, D)))


FAMILY = Family(
    "transformer", "TransformerConfig", "Transformer", units=units, width=("d_model", 16), fine="d_ff"
)
