"""Two models trained on one small text: one with memory, one without."""

import pytest

from kssm_mlx.checks.base import Context
from tests.checks.small_runs import STEPS, make_data, sentences, train
from tests.fakes import Memoryless, TinyRecurrent


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("text"), sentences(4000, 0))


def _trained(kind, prepared):
    data, recipe = prepared
    model = kind(vocab_size=data.vocab_size, width=32)
    initial = train(model, data, STEPS)
    history = [{"kind": "train", "step": STEPS, "loss": 0.0}]
    return Context(model, model.args, recipe, data, data.tokenizer, initial, history)


@pytest.fixture(scope="session")
def trained(prepared):
    """The context at the end of a healthy run."""
    return _trained(TinyRecurrent, prepared)


@pytest.fixture(scope="session")
def trained_memoryless(prepared):
    """The same of a model that sees one token."""
    return _trained(Memoryless, prepared)
