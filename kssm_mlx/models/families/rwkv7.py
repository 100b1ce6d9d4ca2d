"""RWKV-7: facts. transformers has no class for it."""

from __future__ import annotations

from typing import Any

from kssm_mlx.models.families.config_keys import run_time, transformers_keys
from kssm_mlx.models.families.family import Family, KeyMap, UnitTable, keep_names, rows

AROUND = keep_names(
    "model.embeddings.weight",
    "model.layers.{N}.pre_norm.weight",
    "model.layers.{N}.pre_norm.bias",
    "model.layers.{N}.attn_norm.weight",
    "model.layers.{N}.attn_norm.bias",
    "model.layers.{N}.ffn_norm.weight",
    "model.layers.{N}.ffn_norm.bias",
    "model.layers.{N}.ffn.x_k",
    "model.layers.{N}.ffn.key.weight",
    "model.layers.{N}.ffn.value.weight",
    "model.norm.weight",
    "model.norm.bias",
    "lm_head.weight",
)
LORAS = {
    f"model.layers.{{N}}.attn.{c}_lora.lora.{part}": (f"model.layers.{{N}}.attn.{c}_lora.lora.{part}", "same")
    for c in "wavg"
    for part in ("0.weight", "2.weight", "2.bias")
    if (c, part) != ("g", "2.bias")
}
KEYS: KeyMap = {
    **AROUND,
    **LORAS,
    **keep_names(*(f"model.layers.{{N}}.attn.x_{c}" for c in "rwkvag")),
    **keep_names(*(f"model.layers.{{N}}.attn.{c}_proj.weight" for c in "rkvo")),
    # mlx-lm keeps these as [H, K].
    "model.layers.{N}.attn.k_k": ("model.layers.{N}.attn.k_k", "flat"),
    "model.layers.{N}.attn.k_a": ("model.layers.{N}.attn.k_a", "flat"),
    "model.layers.{N}.attn.r_k": ("model.layers.{N}.attn.r_k", "same"),
    "model.layers.{N}.attn.g_norm.weight": ("model.layers.{N}.attn.g_norm.weight", "flat"),
    "model.layers.{N}.attn.g_norm.bias": ("model.layers.{N}.attn.g_norm.bias", "flat"),
}
BLINKDL: KeyMap = {
    "emb.weight": ("model.embeddings.weight", "same"),
    "blocks.{N}.ln0.weight": ("model.layers.{N}.pre_norm.weight", "same"),
    "blocks.{N}.ln0.bias": ("model.layers.{N}.pre_norm.bias", "same"),
    "blocks.{N}.ln1.weight": ("model.layers.{N}.attn_norm.weight", "same"),
    "blocks.{N}.ln1.bias": ("model.layers.{N}.attn_norm.bias", "same"),
    "blocks.{N}.ln2.weight": ("model.layers.{N}.ffn_norm.weight", "same"),
    "blocks.{N}.ln2.bias": ("model.layers.{N}.ffn_norm.bias", "same"),
    "blocks.{N}.att.x_r": ("model.layers.{N}.attn.x_r", "row"),
    "blocks.{N}.att.x_w": ("model.layers.{N}.attn.x_w", "row"),
    "blocks.{N}.att.x_k": ("model.layers.{N}.attn.x_k", "row"),
    "blocks.{N}.att.x_v": ("model.layers.{N}.attn.x_v", "row"),
    "blocks.{N}.att.x_a": ("model.layers.{N}.attn.x_a", "row"),
    "blocks.{N}.att.x_g": ("model.layers.{N}.attn.x_g", "row"),
    "blocks.{N}.att.w0": ("model.layers.{N}.attn.w_lora.lora.2.bias", "flat"),
    "blocks.{N}.att.w1": ("model.layers.{N}.attn.w_lora.lora.0.weight", "transpose"),
    "blocks.{N}.att.w2": ("model.layers.{N}.attn.w_lora.lora.2.weight", "transpose"),
    "blocks.{N}.att.a0": ("model.layers.{N}.attn.a_lora.lora.2.bias", "flat"),
    "blocks.{N}.att.a1": ("model.layers.{N}.attn.a_lora.lora.0.weight", "transpose"),
    "blocks.{N}.att.a2": ("model.layers.{N}.attn.a_lora.lora.2.weight", "transpose"),
    "blocks.{N}.att.v0": ("model.layers.{N}.attn.v_lora.lora.2.bias", "flat"),
    "blocks.{N}.att.v1": ("model.layers.{N}.attn.v_lora.lora.0.weight", "transpose"),
    "blocks.{N}.att.v2": ("model.layers.{N}.attn.v_lora.lora.2.weight", "transpose"),
    "blocks.{N}.att.g1": ("model.layers.{N}.attn.g_lora.lora.0.weight", "transpose"),
    "blocks.{N}.att.g2": ("model.layers.{N}.attn.g_lora.lora.2.weight", "transpose"),
    "blocks.{N}.att.k_k": ("model.layers.{N}.attn.k_k", "flat"),
    "blocks.{N}.att.k_a": ("model.layers.{N}.attn.k_a", "flat"),
    "blocks.{N}.att.r_k": ("model.layers.{N}.attn.r_k", "same"),
    "blocks.{N}.att.receptance.weight": ("model.layers.{N}.attn.r_proj.weight", "same"),
    "blocks.{N}.att.key.weight": ("model.layers.{N}.attn.k_proj.weight", "same"),
    "blocks.{N}.att.value.weight": ("model.layers.{N}.attn.v_proj.weight", "same"),
    "blocks.{N}.att.output.weight": ("model.layers.{N}.attn.o_proj.weight", "same"),
    "blocks.{N}.att.ln_x.weight": ("model.layers.{N}.attn.g_norm.weight", "flat"),
    "blocks.{N}.att.ln_x.bias": ("model.layers.{N}.attn.g_norm.bias", "flat"),
    "blocks.{N}.ffn.x_k": ("model.layers.{N}.ffn.x_k", "flat"),
    "blocks.{N}.ffn.key.weight": ("model.layers.{N}.ffn.key.weight", "same"),
    "blocks.{N}.ffn.value.weight": ("model.layers.{N}.ffn.value.weight", "same"),
    "ln_out.weight": ("model.norm.weight", "same"),
    "ln_out.bias": ("model.norm.bias", "same"),
    "head.weight": ("lm_head.weight", "same"),
}

CONFIG_KEYS = transformers_keys(
    used=(
        *("vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "num_heads", "hidden_ratio"),
        *("intermediate_size", "norm_eps", "tie_word_embeddings", "value_dim"),
        *(f"{part}_low_rank_dim" for part in ("decay", "a", "v", "gate")),
    ),
    only={
        "hidden_act": ("sqrelu", "relu2"),
        "norm_first": (True,),
        "norm_bias": (True,),
        "attn": (None,),
    },
    ignored=run_time(
        *("attn_mode", "max_position_embeddings", "fuse_norm", "fuse_cross_entropy", "use_l2warp"),
        "fuse_linear_cross_entropy",
    ),
)


def derived(config: Any) -> dict[str, Any]:
    return {"intermediate_size": config.wide, "hidden_act": "sqrelu", "norm_first": True, "norm_bias": True}


def units(c: Any, count: int) -> UnitTable:
    """The heads."""
    D, parts = c.hidden_size, ("weight", "bias")
    outer = [f"{x}_lora.lora.2.{part}" for x in "wa" for part in parts]
    mixed = [f"v_lora.lora.2.{part}" for part in parts]
    return UnitTable(
        "attn",
        c.heads,
        [
            *rows("routing", D, "r_proj.weight", "k_proj.weight", *outer, "k_k", "k_a"),
            *rows("routing", c.heads, "r_k"),
            *rows("slack", D, "v_proj.weight", *mixed, "g_lora.lora.2.weight"),
            *rows("slack", D, "g_norm.weight", "g_norm.bias"),
            *rows("slack", D, "o_proj.weight", axis=1),
        ],
    )


FAMILY = Family(
    "rwkv7",
    "RWKV7Config",
    "RWKV7",
    key_maps={"hf": KEYS, "blinkdl": BLINKDL},
    config_keys={"hf": CONFIG_KEYS},
    unread={"blinkdl": ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")},
    derived=derived,
    units=units,
    graft_width=lambda config: config.hidden_size,
    bench=lambda width: {"head_dim": 64},
    width=("hidden_size", 64),
    fine=("intermediate_size",),
)
