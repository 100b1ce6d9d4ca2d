"""Mamba-2: facts."""

from __future__ import annotations

from typing import Any

from kssm_mlx.models.families.config_keys import (
    ConfigKeys,
    fresh_weights,
    run_time,
    transformers_keys,
)
from kssm_mlx.models.families.family import Family, KeyMap, UnitTable, claims, ratio, same
from kssm_mlx.models.families.mamba import (
    BLOCK,
    HEAD,
    LEFT_OVER,
    OLD_EMBEDDING,
    ORIGINAL,
    SILU,
    SIZES_OF_TRANSFORMERS,
    SWITCHES,
    TIME_STEPS,
)

KEYS: KeyMap = {
    **HEAD,
    **OLD_EMBEDDING,
    **BLOCK,
    **same("backbone.layers.{N}.mixer.dt_bias", "backbone.layers.{N}.mixer.norm.weight"),
}

CONFIG_KEYS = transformers_keys(
    used=(*SIZES_OF_TRANSFORMERS, *SWITCHES, "num_heads", "head_dim", "n_groups", "time_step_limit"),
    only={"hidden_act": SILU, "rms_norm": (True,)},
    ignored={
        **TIME_STEPS,
        **LEFT_OVER,
        **run_time("chunk_size", "layer_types", "use_mem_eff_path"),
        "intermediate_size": "expand times hidden_size in transformers, whatever it says",
        "time_step_rank": "transformers' Mamba-2 has no low-rank step",
        "norm_before_gate": "transformers gates before the norm, whatever it says",
    },
)
ORIGINAL_SSM = ConfigKeys(
    used=(
        *("d_state", "d_conv", "expand", "headdim", "ngroups", "bias", "conv_bias", "norm_before_gate"),
        "dt_limit",
    ),
    only={
        "layer": ("Mamba2",),
        "d_ssm": (None,),
        "D_has_hdim": (False,),
        "rmsnorm": (True,),
        "activation": SILU,
        "process_group": (None,),
    },
    ignored={
        **fresh_weights("dt_min", "dt_max", "dt_init_floor", "conv_init", "A_init_range"),
        **run_time("chunk_size", "use_mem_eff_path", "sequence_parallel", "layer_idx", "device", "dtype"),
    },
)


def derived(config: Any) -> dict[str, Any]:
    return {
        "expand": ratio(config.channels, config.hidden_size),
        "hidden_act": "silu",
        # mlx-lm's own Mamba-2 asks for both, and uses neither otherwise than as here.
        "intermediate_size": config.channels,
        "time_step_rank": "auto",
    }


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
    config_keys={"hf": CONFIG_KEYS, "state-spaces": ORIGINAL, "ssm_cfg": ORIGINAL_SSM},
    derived=derived,
    units=units,
    graft_width=lambda config: config.channels,
    bench=lambda width: {"num_heads": width // 32, "head_dim": 64, "state_size": 64},
    width=("hidden_size", 2),
)
