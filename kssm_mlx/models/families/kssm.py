"""K-SSM: facts. Its files have our own names."""

from __future__ import annotations

from typing import Any

from kssm_mlx.models.families.family import Family, UnitTable, claims


def units(c: Any, count: int) -> UnitTable:
    """The populations."""
    G = c.n_groups
    vectors = [("omega", 0, 0), ("log_gamma", 0, 0), ("field.weight", 0, 0), ("field.weight", 0, G)]
    vectors += [
        ("time_step.weight", 0, 0),
        ("time_step.bias", 0, 0),
        ("coupling", 1, 0),
        ("self_coupling", 1, 0),
    ]
    return UnitTable(
        "mixer",
        G,
        claims(
            *(("routing", f"populations.{path}", axis, offset, G) for path, axis, offset in vectors),
            *(("slack", "readout.weight", 1, i * G, G) for i in range(2 * c.harmonics)),
        ),
    )


FAMILY = Family("kssm", "KSSMConfig", "KSSM", units=units, width=("d_model", 8), fine="mlp_hidden")
