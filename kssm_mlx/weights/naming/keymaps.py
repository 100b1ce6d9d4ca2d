"""Which tensor of a file is which parameter of ours: literal tables, one per source.

    name in the file -> name in our model, and the change of shape in between

`{N}` stands for the number of a block. The tables are total on both sides: `names.map_names` reports every
parameter that no tensor gives and every tensor that no parameter takes.
"""

from __future__ import annotations

# How a stored tensor becomes ours: reshapes and transpositions of numpy or MLX arrays, never arithmetic.
TRANSFORMS = {
    "same": lambda x: x,
    "conv axis": lambda x: x if x.shape[-1] == 1 else x.transpose(0, 2, 1),  # [I, 1, W] -> [I, W, 1]
    "flat": lambda x: x.reshape(-1),  # [1, 1, D], [H, K] -> [D]
    "row": lambda x: x.reshape(1, 1, -1),  # [D] -> [1, 1, D]
    "transpose": lambda x: x.T,  # [in, out] -> [out, in]
}
Target = tuple[str, str]  # our name, name of the transform
Table = dict[str, Target]


def _same(*names: str) -> Table:
    return {name: (name, "same") for name in names}


_MAMBA_HEAD = _same("backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight")
_MAMBA_BLOCK = {
    **_same(
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
_OLD_EMBEDDING = {"backbone.embedding.weight": ("backbone.embeddings.weight", "same")}

MAMBA: Table = {
    **_MAMBA_HEAD,
    **_OLD_EMBEDDING,
    **_MAMBA_BLOCK,
    **_same(
        "backbone.layers.{N}.mixer.x_proj.weight",
        "backbone.layers.{N}.mixer.dt_proj.weight",
        "backbone.layers.{N}.mixer.dt_proj.bias",
    ),
}
MAMBA2: Table = {
    **_MAMBA_HEAD,
    **_OLD_EMBEDDING,
    **_MAMBA_BLOCK,
    **_same("backbone.layers.{N}.mixer.dt_bias", "backbone.layers.{N}.mixer.norm.weight"),
}
RWKV4: Table = _same(
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
RWKV4_BLINKDL: Table = {
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
_RWKV7_AROUND = _same(
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
_LORAS = {
    f"model.layers.{{N}}.attn.{c}_lora.lora.{part}": (f"model.layers.{{N}}.attn.{c}_lora.lora.{part}", "same")
    for c in "wavg"
    for part in ("0.weight", "2.weight", "2.bias")
    if (c, part) != ("g", "2.bias")
}
RWKV7: Table = {
    **_RWKV7_AROUND,
    **_LORAS,
    **_same(*(f"model.layers.{{N}}.attn.x_{c}" for c in "rwkvag")),
    **_same(*(f"model.layers.{{N}}.attn.{c}_proj.weight" for c in "rkvo")),
    # mlx-lm keeps these as [H, K].
    "model.layers.{N}.attn.k_k": ("model.layers.{N}.attn.k_k", "flat"),
    "model.layers.{N}.attn.k_a": ("model.layers.{N}.attn.k_a", "flat"),
    "model.layers.{N}.attn.r_k": ("model.layers.{N}.attn.r_k", "same"),
    "model.layers.{N}.attn.g_norm.weight": ("model.layers.{N}.attn.g_norm.weight", "flat"),
    "model.layers.{N}.attn.g_norm.bias": ("model.layers.{N}.attn.g_norm.bias", "flat"),
}
RWKV7_BLINKDL: Table = {
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

# (layout, model_type) -> table. Run folders and mlx-lm folders have the names of "hf". A family that is not
# here, such as K-SSM, has files in its own names only.
TABLES: dict[tuple[str, str], Table] = {
    ("hf", "mamba"): MAMBA,
    ("hf", "falcon_mamba"): MAMBA,
    ("hf", "mamba2"): MAMBA2,
    ("hf", "rwkv"): RWKV4,
    ("hf", "rwkv7"): RWKV7,
    ("state-spaces", "mamba"): MAMBA,
    ("state-spaces", "mamba2"): MAMBA2,
    ("blinkdl", "rwkv"): RWKV4_BLINKDL,
    ("blinkdl", "rwkv7"): RWKV7_BLINKDL,
}
# Tensors that a source stores and its own code never reads.
UNREAD = {
    ("blinkdl", "rwkv7"): ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"),
}


def table(layout: str, model_type: str, own_names: list[str]) -> Table:
    """The table of a source; for a family without foreign files, its own names."""
    source = "hf" if layout == "run" else layout
    return TABLES.get((source, model_type)) or _same(*own_names)
