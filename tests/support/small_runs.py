"""A small text with structure beyond the bigram, and a plain loop: seconds to a model that has learned."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from kssm_mlx.checks.core.probes import cross_entropy
from kssm_mlx.data.batches import random_batch
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.training.recipe import parse

STEPS, CONTEXT = 80, 32
NAMES = ("ada", "bertrand", "carl", "dora", "emmy", "franz", "grete", "hugo", "ida", "jules", "nora", "otto")
VERBS = ("sees", "hears", "visits", "follows", "invites", "remembers", "answers", "surprises")
PLACES = ("at home", "in the garden", "near the station", "under the bridge", "by the river")


def sentences(count: int, seed: int) -> str:
    """Lines such as "nora remembers karl by the river." in a seeded order."""
    rng = np.random.default_rng(seed)
    return "".join(
        " ".join(words[rng.integers(len(words))] for words in (NAMES, VERBS, NAMES, PLACES)) + ".\n"
        for _ in range(count)
    )


def make_data(folder, text: str, **options):
    """Token files of a text (characters by default) and the recipe they came from."""
    source = folder / "corpus.txt"
    source.write_text(text)
    data = {"source": f"file:{source}", "tokenizer": "chars", **options}
    train = {"steps": STEPS, "context": CONTEXT, "batch_size": 16}
    recipe = parse({"data": data, "train": train, "eval": {"tokens": 4096}})
    return prepare(recipe.data, folder / "data"), recipe


def train(model, data, steps: int, seed: int = 0):
    """Plain Adam; returns the parameters before step 1. seed: of the batches."""
    initial = {n: mx.array(p) for n, p in nn.utils.tree_flatten(model.parameters())}
    mx.eval(initial)
    optimizer, step = optim.Adam(1e-2), nn.value_and_grad(model, lambda t: cross_entropy(model, t))
    for i in range(steps):
        tokens = random_batch(data.train, seed, i, 16, CONTEXT).tokens
        optimizer.update(model, step(mx.array(tokens))[1])
        mx.eval(model.parameters(), optimizer.state)
    return initial
