"""Small oscillator models, trained for seconds on the text of small_runs, and their sabotaged twins."""

import mlx.core as mx

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.models import build, configure
from kssm_mlx.models.kssm import KSSMConfig
from tests.support.small_runs import train

STEPS = 40
SIZE = {"d_model": 32, "n_layers": 2, "n_groups": 16, "mlp_hidden": 32, "memory": 32}


def small(family: str, vocab_size: int, seed: int = 0, **overrides):
    """A model of a family small enough to train in a test."""
    if family == "kssm":
        return build(KSSMConfig(vocab_size=vocab_size, **{**SIZE, **overrides}), seed)
    return build(configure(family, "xs", vocab_size=vocab_size, overrides=overrides), seed)


def trained(prepared, family: str = "kssm", seed: int = 0, kind: type | None = None, **overrides) -> Context:
    """The context at the end of a short run; `kind` is a class that the trained model becomes."""
    data, recipe = prepared
    model = small(family, data.vocab_size, seed, **overrides)
    initial = train(model, data, STEPS)
    if kind is not None:
        model.__class__ = kind
    plan = recipe.train.model_copy(update={"steps": STEPS, "learning_rate": 1e-2})
    recipe = recipe.model_copy(update={"train": plan})
    history = [{"kind": "train", "step": STEPS, "loss": 0.0}]
    return Context(model, model.args, recipe, data, data.tokenizer, initial, history, seed=seed)


def on_its_floor(v3):
    """K-SSM v3 as it was published after some thousand steps: every u clipped at 0.1, Delta = 0.25."""
    for block in v3.blocks:
        block.bank.to_parameters.weight = 0 * block.bank.to_parameters.weight
        block.bank.to_parameters.bias = mx.array([0.5, 1.0] + [0.5] * 8)
    return v3
