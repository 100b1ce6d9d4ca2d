"""Mamba-2: facts."""

from __future__ import annotations

from typing import Any

from kssm_mlx.models.families.family import Family, KeyMap, UnitTable, claims, ratio, same
from kssm_mlx.models.families.mamba import BLOCK, HEAD, OLD_EMBEDDING

KEYS: KeyMap = {
    **HEAD,
    **OLD_EMBEDDING,
    **BLOCK,
    **same("backbone.layers.{N}.mixer.dt_bias", "backbone.layers.{N}.mixer.norm.weight"),
}


def derived(config: Any) -> dict[str, Any]:
    return {"expand": ratio(config.channels, config.hidden_size), "hidden_act": "silu"}


def units(c: Any, count: int) -> UnitTable:
    """The heads of the scan; B and C of a group only where every unit has groups of its own."""
    I, H, GN = c.channels, c.num_heads, c.n_groups * c.state_size
    bc = [("in_proj.weight", 2 * I), ("in_proj.bias", 2 * I), ("conv1d.weight", I), ("conv1d.bias", I)]
    grouped = (
        [(path, offset + i * GN, GN) for path, offset in bc for i in (0, 1)]
        if c.n_groups % count == 0
        else []
    )
    dt = [(path, 2 * I + 2 * GN, H) for path in ("in_proj.weight", "in_proj.bias")]
    routing = [
        ("dt_bias", 0, H),
        ("A_log", 0, H),
        ("conv1d.weight", 0, I),
        ("conv1d.bias", 0, I),
        *dt,
        *grouped,
    ]
    slack = [(f"in_proj.{name}", i * I, I) for i in (0, 1) for name in ("weight", "bias")]
    return UnitTable(
        "mixer",
        H,
        claims(
            *(("routing", path, 0, offset, width) for path, offset, width in routing),
            *(
                ("slack", path, 0, offset, width)
                for path, offset, width in [*slack, ("D", 0, H), ("norm.weight", 0, I)]
            ),
            ("slack", "out_proj.weight", 1, 0, I),
        ),
    )


FAMILY = Family(
    "mamba2",
    "Mamba2Config",
    "Mamba2",
    architecture="Mamba2ForCausalLM",
    key_maps={"hf": KEYS, "state-spaces": KEYS},
    derived=derived,
    units=units,
    graft_width=lambda config: config.channels,
    bench=lambda width: {"num_heads": width // 32, "head_dim": 64, "state_size": 64},
)
