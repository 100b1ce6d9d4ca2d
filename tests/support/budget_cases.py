"""Small recipes of every family, with what changes the memory of a step: for predictions against counters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kssm_mlx.training.recipe import Recipe, parse
from tests.support.exported import SMALL, exported, tiny
from tests.support.small_runs import sentences

ROWS, CONTEXT = 16, 32
KSSM = {"family": "kssm", **SMALL["kssm"]}
LORA = {"train": "lora", "rank": 4}
HOOK = {"train": "frozen", "graft": {"core": "hook"}}
UNCERTAIN = {"loss": {"uncertainty": {"weight": 0.1, "target": 0.5}}, "monitor": {"profile": "C"}}

# Name -> sections of a recipe; a base model is the family's name until there is a folder.
CASES: dict[str, dict[str, Any]] = {
    "kssm": {"model": KSSM},
    "kssm, blocks computed again": {"model": KSSM, "train": {"checkpoint_blocks": True}},
    "kssm, 4 pieces": {"model": KSSM, "train": {"accumulation": 4, "batch_size": 64}},
    "kssm, bfloat16": {"model": KSSM, "train": {"precision": "bfloat16"}},
    "kssm, state handed on": {"model": KSSM, "train": {"hand_off": True}},
    "mamba": {"model": {"family": "mamba", **SMALL["mamba"]}},
    "mamba, blocks computed again": {
        "model": {"family": "mamba", **SMALL["mamba"]},
        "train": {"checkpoint_blocks": True},
    },
    "mamba2": {"model": {"family": "mamba2", **SMALL["mamba2"]}},
    "rwkv": {"model": {"family": "rwkv", **SMALL["rwkv"]}},
    "rwkv7": {"model": {"family": "rwkv7", **SMALL["rwkv7"]}},
    "transformer": {"model": {"family": "transformer", "d_model": 32, "n_layers": 2, "n_heads": 2}},
    "gru": {"model": {"family": "gru", "size": "xs"}},
    "hybrid": {"model": {"family": "hybrid", "size": "xs", "n_layers": 2}},
    "mamba, LoRA": {"model": {"base": "mamba", **LORA}},
    "mamba, LoRA in 2 pieces": {
        "model": {"base": "mamba", **LORA},
        "train": {"accumulation": 2, "batch_size": 32},
    },
    "mamba, grafted": {"model": {"base": "mamba", **HOOK}, **UNCERTAIN},
}


def budget_recipe(name: str, folder: Path) -> Recipe:
    """The recipe of a case, its text and its base model in `folder`."""
    text, case = folder / "text.txt", CASES[name]
    text.write_text(sentences(1200, 0))
    model = dict(case["model"])
    if "base" in model:
        model["base"] = str(exported(tiny(model["base"]), folder / "base"))
    train = {"steps": 4, "batch_size": ROWS, "context": CONTEXT, "warmup": 1, **case.get("train", {})}
    beside = {key: case[key] for key in ("loss", "monitor") if key in case}
    return parse(
        {
            "data": {"source": f"file:{text}", "tokenizer": "bytes"},
            "model": model,
            "train": train,
            "eval": {"every": 4, "tokens": 256, "sample_tokens": 0},
            "save": {"every": 4},
            **beside,
        }
    )
