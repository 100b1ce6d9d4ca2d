"""Mamba-2: facts."""

from __future__ import annotations

from typing import Any

from kssm_mlx.models.families.config_keys import (
    ConfigKeys,
    fresh_weights,
    run_time,
    transformers_keys,
)
from kssm_mlx.models.families.family import Family, KeyMap, UnitTable, keep_names, ratio, rows
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
    **keep_names("backbone.layers.{N}.mixer.dt_bias", "backbone.layers.{N}.mixer.norm.weight"),
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
    into, conv = ("in_proj.weight", "in_proj.bias"), ("conv1d.weight", "conv1d.bias")
    groups = (0, GN) if c.n_groups % count == 0 else ()
    return UnitTable(
        "mixer",
        H,
        [
            *rows("routing", H, "dt_bias", "A_log"),
            *rows("routing", I, *conv),
            *rows("routing", H, *into, at=2 * I + 2 * GN),
            *(claim for at in groups for claim in rows("routing", GN, *into, at=2 * I + at)),
            *(claim for at in groups for claim in rows("routing", GN, *conv, at=I + at)),
            *rows("slack", I, *into, "norm.weight"),
            *rows("slack", I, *into, at=I),
            *rows("slack", H, "D"),
            *rows("slack", I, "out_proj.weight", axis=1),
        ],
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
