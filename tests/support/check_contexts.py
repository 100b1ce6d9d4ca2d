"""What a check is given in a test: a fresh small model, and the data and recipe of a small text."""

from kssm_mlx import models
from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.training.recipe import parse
from tests.support.fakes import TinyRecurrent


def fresh(prepared, kind=TinyRecurrent, seed: int = 0, **train) -> Context:
    """A model of `kind` before step 1; `train` changes keys of the recipe's [train]."""
    data, recipe = prepared
    recipe = changed(recipe, seed=seed, **train)
    model = kind(vocab_size=data.vocab_size, width=32, seed=seed)
    return Context(model, model.args, recipe, data, data.tokenizer, seed=seed)


def fresh_kssm(prepared, seed: int = 0, **train) -> Context:
    """The same of the smallest K-SSM."""
    data, recipe = prepared
    sizes = {"d_model": 16, "n_layers": 2, "n_groups": 8, "mlp_hidden": 24}
    config = models.configure("kssm", "xs", vocab_size=data.vocab_size, context=32, overrides=sizes)
    model = models.build(config, seed)
    return Context(model, config, changed(recipe, seed=seed, **train), data, data.tokenizer, seed=seed)


def changed(recipe, **train):
    table = recipe.model_dump()
    return parse({**table, "train": {**table["train"], **train}})


def measure(id: str, context: Context):
    (check,) = suite.run_suite(context, [id])
    return check
