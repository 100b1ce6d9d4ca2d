"""Mamba and FalconMamba: facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kssm_mlx.models.families.config_keys import (
    ConfigKeys,
    fresh_weights,
    run_time,
    transformers_keys,
)
from kssm_mlx.models.families.family import Family, KeyMap, UnitTable, keep_names, ratio, rows

HEAD = keep_names("backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight")
BLOCK = {
    **keep_names(
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
    **keep_names(
        "backbone.layers.{N}.mixer.x_proj.weight",
        "backbone.layers.{N}.mixer.dt_proj.weight",
        "backbone.layers.{N}.mixer.dt_proj.bias",
    ),
}

SIZES_OF_TRANSFORMERS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "state_size",
    "conv_kernel",
    "expand",
)
SWITCHES = ("use_bias", "use_conv_bias", "layer_norm_epsilon", "residual_in_fp32", "tie_word_embeddings")
TIME_STEPS = fresh_weights(
    *("time_step_min", "time_step_max", "time_step_floor", "time_step_init_scheme", "time_step_scale"),
    "rescale_prenorm_residual",
)
# The first conversions of state-spaces' files kept the original's keys, which transformers never reads.
LEFT_OVER = dict.fromkeys(
    ("d_model", "d_inner", "n_layer", "ssm_cfg", "pad_vocab_size_multiple", "fused_add_norm"),
    "left over from the original's configuration; transformers reads its own keys",
)
SILU = ("silu", "swish")
CONFIG_KEYS = transformers_keys(
    used=(
        *SIZES_OF_TRANSFORMERS,
        *SWITCHES,
        *("intermediate_size", "time_step_rank", "mixer_rms_eps"),
    ),
    only={"hidden_act": SILU, "rms_norm": (True,)},
    ignored={
        **TIME_STEPS,
        **LEFT_OVER,
        **run_time("use_mambapy", "use_falcon_mambapy", "use_associative_scan", "layer_types"),
    },
)
# state-spaces: config.json, and its ssm_cfg, which are the arguments of mamba_ssm's modules.
ORIGINAL = ConfigKeys(
    used=(
        *("d_model", "n_layer", "vocab_size", "ssm_cfg", "pad_vocab_size_multiple", "residual_in_fp32"),
        "tie_embeddings",
    ),
    only={
        "rms_norm": (True,),
        "d_intermediate": (0, None),
        "attn_layer_idx": ([], None),
        "attn_cfg": ({}, None),
    },
    ignored=run_time("fused_add_norm"),
)
ORIGINAL_SSM = ConfigKeys(
    used=("d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias"),
    only={"layer": ("Mamba1",)},
    ignored={
        **fresh_weights("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"),
        **run_time("use_fast_path", "layer_idx", "device", "dtype"),
    },
)


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
    return UnitTable(
        "mixer",
        I,
        [
            *rows("routing", I, *routing),
            *rows("routing", I, "x_proj.weight", axis=1),
            *rows("slack", I, "in_proj.weight", "in_proj.bias", "D"),
            *rows("slack", I, "in_proj.weight", "in_proj.bias", at=I),
            *rows("slack", I, "out_proj.weight", axis=1),
        ],
    )


FAMILY = Family(
    "mamba",
    "MambaConfig",
    "Mamba",
    architecture="MambaForCausalLM",
    key_maps={"hf": KEYS, "state-spaces": KEYS},
    config_keys={"hf": CONFIG_KEYS, "state-spaces": ORIGINAL, "ssm_cfg": ORIGINAL_SSM},
    derived=derived,
    units=units,
    graft_width=lambda config: config.channels,
    width=("hidden_size", 8),
    fine=("intermediate_size",),
)
# Mamba with norms on Δ, B and C, under another name in transformers.
FALCON = replace(FAMILY, architecture="FalconMambaForCausalLM", key_maps={"hf": KEYS})
