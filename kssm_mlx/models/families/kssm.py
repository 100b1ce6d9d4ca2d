"""K-SSM: facts. Its files have our own names."""

from __future__ import annotations

from typing import Any

from kssm_mlx.models.families.family import Family, UnitTable, rows


def units(c: Any, count: int) -> UnitTable:
    """The populations."""
    G, own = c.n_groups, "populations."
    vectors = ("omega", "log_gamma", "field.weight", "time_step.weight", "time_step.bias")
    return UnitTable(
        "mixer",
        G,
        [
            *rows("routing", G, *(own + name for name in vectors)),
            *rows("routing", G, own + "field.weight", at=G),
            *rows("routing", G, own + "coupling", own + "self_coupling", axis=1),
            *(
                claim
                for i in range(2 * c.harmonics)
                for claim in rows("slack", G, "readout.weight", at=i * G, axis=1)
            ),
        ],
    )


FAMILY = Family("kssm", "KSSMConfig", "KSSM", units=units, width=("d_model", 8), fine="mlp_hidden")
