"""The transformer: facts."""

from __future__ import annotations

from typing import Any

from kssm_mlx.models.families.family import Family, UnitTable, rows


def units(c: Any, count: int) -> UnitTable:
    """The heads."""
    D, qkv = c.d_model, ("qkv.weight", "qkv.bias")
    return UnitTable(
        "attention",
        c.n_heads,
        [
            *rows("routing", D, *qkv),
            *rows("routing", D, *qkv, at=D),
            *rows("slack", D, *qkv, at=2 * D),
            *rows("slack", D, "out.weight", axis=1),
        ],
    )


FAMILY = Family(
    "transformer", "TransformerConfig", "Transformer", units=units, width=("d_model", 16), fine=("d_ff",)
)
