"""Which tensor of a file is which parameter of ours: the literal tables of models/families, one per source.

    name in the file -> name in our model, and the change of shape in between

`{N}` stands for the number of a block. The tables are total on both sides: `names.map_names` reports every
parameter that no tensor gives and every tensor that no parameter takes.
"""

from __future__ import annotations

from kssm_mlx.models import FAMILIES
from kssm_mlx.models.families.family import KeyMap, keep_names

# How a stored tensor becomes ours: reshapes and transpositions of numpy or MLX arrays, never arithmetic.
TRANSFORMS = {
    "same": lambda x: x,
    "conv axis": lambda x: x if x.shape[-1] == 1 else x.transpose(0, 2, 1),  # [I, 1, W] -> [I, W, 1]
    "flat": lambda x: x.reshape(-1),  # [1, 1, D], [H, K] -> [D]
    "row": lambda x: x.reshape(1, 1, -1),  # [D] -> [1, 1, D]
    "transpose": lambda x: x.T,  # [in, out] -> [out, in]
}


def table(layout: str, model_type: str, own_names: list[str]) -> KeyMap:
    """The key map of a source; for a family without foreign files, its own names."""
    source = "hf" if layout == "run" else layout
    return FAMILIES[model_type].key_maps.get(source) or keep_names(*own_names)


def unread(layout: str, model_type: str) -> tuple[str, ...]:
    """Tensors that a source stores and its own code never reads."""
    return FAMILIES[model_type].unread.get(layout, ())
