"""Runs of a dozen steps on a tiny base model that counts as verified."""

from __future__ import annotations

import io

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from rich.console import Console

import kssm_mlx
from kssm_mlx.training.recipe import parse
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.audit.inspect import inspect
from tests.support.small_runs import sentences

WAIVED = dict.fromkeys(("C17", "C18", "C19"), "a dozen steps teach nothing")
TOKENS = mx.array(np.random.default_rng(0).integers(0, 256, (2, 20)).astype(np.int32))


def passed(folder):
    verified.remember(inspect(folder), "L5")


def recipe(base_model, steps: int = 24, tokenizer: str = "bytes", **section):
    text = base_model.parent / "text.txt"
    text.write_text(sentences(600, 0))
    return parse(
        {
            "data": {"source": f"file:{text}", "tokenizer": tokenizer},
            "model": {"base": str(base_model), "rank": 2, **section},
            "train": {"steps": steps, "batch_size": 4, "context": 16, "warmup": 2, "learning_rate": 0.01},
            "eval": {"every": 12, "tokens": 256, "sample_tokens": 4, "prompt": "ada "},
            "save": {"every": 12},
        }
    )


def train(base_model, folder, **options):
    out = io.StringIO()
    keep = {name: options.pop(name) for name in ("resume", "allow_config_change") if name in options}
    console = Console(file=out, width=200)
    result = kssm_mlx.train(recipe(base_model, **options), folder, waivers=WAIVED, console=console, **keep)
    return result, out.getvalue()


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def latest(folder):
    return folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text().strip()
