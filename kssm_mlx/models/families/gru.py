"""GRU and tanh network: facts. Their files have our own names.

A dense recurrence has no freeze units: every unit reads every other.
"""

from __future__ import annotations

from kssm_mlx.models.families.family import Family

FAMILY = Family("gru", "GRUConfig", "GRU", width=("d_model", 8), fine=("mlp_hidden",))
