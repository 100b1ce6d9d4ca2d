"""Mamba and FalconMamba: facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kssm_mlx.models.families.family import Family, KeyMap, UnitTable, claims, ratio, same

HEAD = same("backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight")
BLOCK = {
    **same(
        "backbone.layers.{N}.norm.weight",
        "backbone.layers.{N}.mixer.in_proj.weight",
        "backbone.layers.{N}.mixer.in_proj.bias",
        "backbone.layers.{N}.mixer.conv1d.bias",
        "backbone.layers.{N}.mixer.A_log",
        "backbone.layers.{N}.mixer.D",
        "backbone.layers.{N}.mixer.out_proj.weight",
        "backbone.layers.{N}.mixer.out_proj.bias",
    ),
    "backbone.layers.{N}.mixer.conv1d.weight": ("backbone.layers.{N}.mixer.conv1d.weight", "conv axis"),
}
# The first files of transformers and those of state-spaces call the embedding `embedding`.
OLD_EMBEDDING = {"backbone.embedding.weight": ("backbone.embeddings.weight", "same")}

KEYS: KeyMap = {
    **HEAD,
    **OLD_EMBEDDING,
    **BLOCK,
    **same(
        "backbone.layers.{N}.mixer.x_proj.weight",
        "backbone.layers.{N}.mixer.dt_proj.weight",
        "backbone.layers.{N}.mixer.dt_proj.bias",
    ),
}


def derived(config: Any) -> dict[str, Any]:
    return {
        "intermediate_size": config.channels,
        "time_step_rank": config.rank,
        "expand": ratio(config.channels, config.hidden_size),
        "hidden_act": "silu",
    }


def units(c: Any, count: int) -> UnitTable:
    """Contiguous channels; x_proj's columns are what a unit contributes to Δ, B and C, which stay common."""
    I = c.channels
    routing = ("dt_proj.weight", "dt_proj.bias", "A_log", "conv1d.weight", "conv1d.bias")
    slack = [("in_proj.weight", 0), ("in_proj.weight", I), ("in_proj.bias", 0), ("in_proj.bias", I), ("D", 0)]
    return UnitTable(
        "mixer",
        I,
        claims(
            *(("routing", path, 0, 0, I) for path in routing),
            ("routing", "x_proj.weight", 1, 0, I),
            *(("slack", path, 0, offset, I) for path, offset in slack),
            ("slack", "out_proj.weight", 1, 0, I),
        ),
    )


FAMILY = Family(
    "mamba",
    "MambaConfig",
    "Mamba",
    architecture="MambaForCausalLM",
    key_maps={"hf": KEYS, "state-spaces": KEYS},
    derived=derived,
    units=units,
    graft_width=lambda config: config.channels,
)
# Mamba with norms on Δ, B and C, under another name in transformers.
FALCON = replace(FAMILY, architecture="FalconMambaForCausalLM", key_maps={"hf": KEYS})
