"""Learned vectors before every text do what tokens with these embeddings do, and they alone are trained."""

from __future__ import annotations

import mlx.core as mx
import pytest

from kssm_mlx import models
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.prompt_tuning import PromptTuned, begin_text
from kssm_mlx.models.state_tuning import StateTuned
from tests.models.test_state_tuning import SMALL, plain
from tests.support import model_contract as contract
from tests.support.small_kssm import assert_close

P = 5
pytestmark = pytest.mark.usefixtures("uncompiled")


def tuned(name: str, by: float = 0.3) -> PromptTuned:
    """As after training: every vector somewhere else."""
    model = PromptTuned(plain(name), P, seed=3)
    model.prompt = model.prompt + by * mx.random.normal(model.prompt.shape, key=mx.random.key(0))
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("name", SMALL)
def test_embeddings_of_tokens_do_what_the_tokens_do(name):
    """Also where a text is read in pieces, and a document begins inside a row."""
    host, x = plain(name), contract.tokens(2)
    before = mx.random.randint(0, contract.V, (1, P), key=mx.random.key(7))
    model = PromptTuned(host, P)
    model.prompt = host.embed(before)[0].astype(mx.float32)

    def read_behind(tokens):
        read = mx.concatenate([mx.broadcast_to(before, (tokens.shape[0], P)), tokens], axis=1)
        return host(read)[:, P:]

    assert_close(model(x), read_behind(x), 1e-5)
    first = model.forward(x[:, :4])
    assert_close(model.forward(x[:, 4:], first.cache).logits, read_behind(x)[:, 4:], 2e-5)
    resets = mx.array([[t == 7 for t in range(contract.T)]] * 2)
    found = model.forward(x, resets=resets).logits
    assert_close(found[:, 7:], read_behind(x[:, 7:]), 5e-5)


@pytest.mark.parametrize("name", SMALL)
def test_it_keeps_what_every_model_promises(name):
    model = tuned(name)
    contract.assert_cuts_do_not_matter(model)
    contract.assert_rows_are_alone(model)
    contract.assert_documents_are_alone(model)
    contract.assert_no_future(model)


@pytest.mark.parametrize("name", SMALL)
def test_it_alone_is_trained(name):
    contract.assert_it_alone_is_trained(tuned(name), "prompt")


def test_gradients_are_those_of_central_differences():
    model, x = tuned("kssm"), contract.tokens(2, 5)

    def loss(v):
        model.prompt = v
        return mx.square(model(x)).mean()

    v = model.prompt
    gradient, direction = mx.grad(loss)(v), mx.random.normal(v.shape, key=mx.random.key(3))
    h = 1e-2
    expected = ((loss(v + h * direction) - loss(v - h * direction)) / (2 * h)).item()
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=5e-3)


def test_it_stays_fp32_in_a_model_of_bf16_and_does_not_decay():
    model = tuned("mamba")
    model.apply(
        lambda a: a.astype(mx.bfloat16),
        filter_fn=lambda m, k, v: k != "prompt" and m.valid_parameter_filter(m, k, v),
    )
    assert model.prompt.dtype == mx.float32 and not model.cast_predicate("prompt")
    assert mx.isfinite(model(contract.tokens(1))).all().item()
    assert "prompt" in model.no_decay and model.component("prompt") == "prompt"


def test_the_draw_of_its_beginning_follows_the_seed():
    host = plain("gru")
    one, two, other = (PromptTuned(host, P, seed).prompt for seed in (1, 1, 2))
    assert mx.array_equal(one, two) and not mx.array_equal(one, other)
    rows = {tuple(row) for row in host.embed(mx.arange(contract.V)[None])[0].tolist()}
    assert {tuple(row) for row in one.tolist()} <= rows


def test_without_vectors_it_is_a_state():
    assert type(begin_text(plain("gru"), 0)) is StateTuned
    assert type(begin_text(plain("gru"), 2)) is PromptTuned
    with pytest.raises(ConfigError, match=r"model\.prompt_tokens is 0; expected at least 1"):
        PromptTuned(plain("gru"), 0)


@pytest.mark.parametrize("family", ["transformer", "kssm_v3", "hybrid_v3"])
def test_a_model_without_a_recurrence_is_refused(family):
    model = models.build(models.configure(family, "xs", vocab_size=contract.V, context=32))
    with pytest.raises(ConfigError, match=f"{family} carries no state that could be learned"):
        PromptTuned(model, P)
