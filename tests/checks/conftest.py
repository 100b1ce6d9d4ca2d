"""Two models trained on one small text: one with memory, one without."""

import hashlib
from functools import cache

import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.checks.core.registry import Context
from tests.support.compiling import uncompiled
from tests.support.fakes import Memoryless, TinyRecurrent
from tests.support.small_runs import STEPS, make_data, sentences, train


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("text"), sentences(4000, 0))


def trained_run(kind, prepared, seed: int = 0):
    data, recipe = prepared
    model = kind(vocab_size=data.vocab_size, width=32, seed=seed)
    with uncompiled():  # whoever asks first: compiled, its last bits would be others
        initial = train(model, data, STEPS, seed)
    history = [{"kind": "train", "step": STEPS, "loss": 0.0}]
    return Context(model, model.args, recipe, data, data.tokenizer, initial, history, seed=seed)


@pytest.fixture(scope="session")
def healthy(prepared):
    """healthy(seed) -> the context at the end of a healthy run, trained once."""
    return cache(lambda seed: trained_run(TinyRecurrent, prepared, seed))


@pytest.fixture(autouse=True)
def unchanged(request):
    """What tests share, they leave as it was: the parameters to the last bit, and the mode."""
    shared = {"healthy": lambda made: made(0), "trained_memoryless": lambda made: made}
    names = sorted(shared.keys() & set(request.fixturenames))
    models = [shared[name](request.getfixturevalue(name)).model for name in names]
    before = [fingerprint(model) for model in models]
    yield
    assert [fingerprint(model) for model in models] == before, "the test changed a model that others share"


def fingerprint(model) -> tuple[bool, str]:
    bits = (np.array(p).tobytes() for _, p in tree_flatten(model.parameters()))
    return model.training, hashlib.sha256(b"".join(bits)).hexdigest()


@pytest.fixture(scope="session")
def trained(healthy):
    """The first of them."""
    return healthy(0)


@pytest.fixture(scope="session")
def trained_memoryless(prepared):
    """The same of a model that sees one token."""
    return trained_run(Memoryless, prepared)
