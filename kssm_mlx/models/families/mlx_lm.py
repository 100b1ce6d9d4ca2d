"""Models of mlx-lm: facts. Their files have mlx-lm's names, which a model tells itself (`MLXLM.key_map`)."""

from __future__ import annotations

from kssm_mlx.models.families.family import Family

FAMILY = Family("mlx_lm.model", "MLXLMConfig", "MLXLM", graft_width=lambda config: config.hidden_size)
