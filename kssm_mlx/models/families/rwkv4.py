"""RWKV-4: facts."""

from __future__ import annotations

from typing import Any

from kssm_mlx.models.families.config_keys import run_time, transformers_keys
from kssm_mlx.models.families.family import Family, KeyMap, UnitTable, keep_names, rows

KEYS: KeyMap = keep_names(
    "rwkv.embeddings.weight",
    "rwkv.blocks.{N}.pre_ln.weight",
    "rwkv.blocks.{N}.pre_ln.bias",
    "rwkv.blocks.{N}.ln1.weight",
    "rwkv.blocks.{N}.ln1.bias",
    "rwkv.blocks.{N}.ln2.weight",
    "rwkv.blocks.{N}.ln2.bias",
    "rwkv.blocks.{N}.attention.time_decay",
    "rwkv.blocks.{N}.attention.time_first",
    "rwkv.blocks.{N}.attention.time_mix_key",
    "rwkv.blocks.{N}.attention.time_mix_value",
    "rwkv.blocks.{N}.attention.time_mix_receptance",
    "rwkv.blocks.{N}.attention.key.weight",
    "rwkv.blocks.{N}.attention.value.weight",
    "rwkv.blocks.{N}.attention.receptance.weight",
    "rwkv.blocks.{N}.attention.output.weight",
    "rwkv.blocks.{N}.feed_forward.time_mix_key",
    "rwkv.blocks.{N}.feed_forward.time_mix_receptance",
    "rwkv.blocks.{N}.feed_forward.key.weight",
    "rwkv.blocks.{N}.feed_forward.receptance.weight",
    "rwkv.blocks.{N}.feed_forward.value.weight",
    "rwkv.ln_out.weight",
    "rwkv.ln_out.bias",
    "head.weight",
)
BLINKDL: KeyMap = {
    "emb.weight": ("rwkv.embeddings.weight", "same"),
    "blocks.{N}.ln0.weight": ("rwkv.blocks.{N}.pre_ln.weight", "same"),
    "blocks.{N}.ln0.bias": ("rwkv.blocks.{N}.pre_ln.bias", "same"),
    "blocks.{N}.ln1.weight": ("rwkv.blocks.{N}.ln1.weight", "same"),
    "blocks.{N}.ln1.bias": ("rwkv.blocks.{N}.ln1.bias", "same"),
    "blocks.{N}.ln2.weight": ("rwkv.blocks.{N}.ln2.weight", "same"),
    "blocks.{N}.ln2.bias": ("rwkv.blocks.{N}.ln2.bias", "same"),
    "blocks.{N}.att.time_decay": ("rwkv.blocks.{N}.attention.time_decay", "flat"),
    "blocks.{N}.att.time_first": ("rwkv.blocks.{N}.attention.time_first", "flat"),
    "blocks.{N}.att.time_mix_k": ("rwkv.blocks.{N}.attention.time_mix_key", "row"),
    "blocks.{N}.att.time_mix_v": ("rwkv.blocks.{N}.attention.time_mix_value", "row"),
    "blocks.{N}.att.time_mix_r": ("rwkv.blocks.{N}.attention.time_mix_receptance", "row"),
    "blocks.{N}.att.key.weight": ("rwkv.blocks.{N}.attention.key.weight", "same"),
    "blocks.{N}.att.value.weight": ("rwkv.blocks.{N}.attention.value.weight", "same"),
    "blocks.{N}.att.receptance.weight": ("rwkv.blocks.{N}.attention.receptance.weight", "same"),
    "blocks.{N}.att.output.weight": ("rwkv.blocks.{N}.attention.output.weight", "same"),
    "blocks.{N}.ffn.time_mix_k": ("rwkv.blocks.{N}.feed_forward.time_mix_key", "row"),
    "blocks.{N}.ffn.time_mix_r": ("rwkv.blocks.{N}.feed_forward.time_mix_receptance", "row"),
    "blocks.{N}.ffn.key.weight": ("rwkv.blocks.{N}.feed_forward.key.weight", "same"),
    "blocks.{N}.ffn.receptance.weight": ("rwkv.blocks.{N}.feed_forward.receptance.weight", "same"),
    "blocks.{N}.ffn.value.weight": ("rwkv.blocks.{N}.feed_forward.value.weight", "same"),
    "ln_out.weight": ("rwkv.ln_out.weight", "same"),
    "ln_out.bias": ("rwkv.ln_out.bias", "same"),
    "head.weight": ("head.weight", "same"),
}

CONFIG_KEYS = transformers_keys(
    used=(
        *("vocab_size", "hidden_size", "num_hidden_layers", "attention_hidden_size", "intermediate_size"),
        *("layer_norm_epsilon", "rescale_every", "weights_rescaled", "tie_word_embeddings"),
    ),
    only={},
    ignored=run_time("context_length", "max_position_embeddings"),
)


def derived(config: Any) -> dict[str, Any]:
    return {"attention_hidden_size": config.channels, "intermediate_size": config.wide}


def units(c: Any, count: int) -> UnitTable:
    """Contiguous channels."""
    A = c.channels
    return UnitTable(
        "attention",
        A,
        [
            *rows("routing", A, "receptance.weight", "key.weight", "time_decay", "time_first"),
            *rows("slack", A, "value.weight"),
            *rows("slack", A, "output.weight", axis=1),
        ],
    )


FAMILY = Family(
    "rwkv4",
    "RWKV4Config",
    "RWKV4",
    architecture="RwkvForCausalLM",
    key_maps={"hf": KEYS, "blinkdl": BLINKDL},
    config_keys={"hf": CONFIG_KEYS},
    derived=derived,
    units=units,
    graft_width=lambda config: config.channels,
    width=("hidden_size", 8),
    fine=("intermediate_size",),
)
