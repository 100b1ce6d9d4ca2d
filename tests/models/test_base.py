"""The protocol's own functions: parameters as an argument, caches written in place, clamps described."""

import math
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import (
    Clamp,
    Intervention,
    LanguageModel,
    Trained,
    clamp_output,
    mask_clamped,
    with_parameters,
    write_back,
)
from kssm_mlx.models.recurrent import RecurrentModel
from tests.support.small_kssm import assert_close, awake, tokens

pytestmark = pytest.mark.usefixtures("uncompiled")


class SlotCache:
    """What mlx-lm hands in: indexed by slot, with the lengths of right-padded rows, told how far it came."""

    def __init__(self, slots: int = 2, lengths: list[int] | None = None):
        self.slots = [None] * slots
        self.lengths = None if lengths is None else mx.array(lengths)

    def __getitem__(self, i):
        return self.slots[i]

    def __setitem__(self, i, value):
        self.slots[i] = value

    def advance(self, n):
        if self.lengths is not None:
            self.lengths = self.lengths - n


# --- parameters -----------------------------------------------------------------------------------------


def test_a_model_is_a_function_of_its_parameters():
    one, other, ids = awake(seed=0), awake(seed=1), tokens(1, 6)
    assert mx.array_equal(with_parameters(one, other.parameters(), lambda: one(ids)), other(ids))


def test_its_own_parameters_come_back_even_after_an_error():
    model, ids = awake(seed=0), tokens(1, 6)
    before = model(ids)
    with pytest.raises(RuntimeError, match="inside"):
        with_parameters(
            model, awake(seed=1).parameters(), lambda: (_ for _ in ()).throw(RuntimeError("inside"))
        )
    assert mx.array_equal(model(ids), before)


def test_nothing_traced_stays_behind():
    model = nn.Linear(2, 1)
    loss = lambda p: with_parameters(model, p, lambda: model(mx.ones((1, 2))).sum())  # noqa: E731
    gradient = mx.grad(loss)(model.parameters())
    assert gradient["weight"].tolist() == [[1, 1]] and gradient["bias"].tolist() == [1]
    mx.eval(model.parameters())  # a tracer could not be evaluated
    assert np.isfinite(np.array(model.weight)).all()


# --- caches ---------------------------------------------------------------------------------------------


def test_a_call_writes_its_state_back():
    model, ids = awake(), tokens(2, 9)
    cache = model.make_cache()
    whole = model.forward(ids)
    first = model(ids[:, :4], cache)
    rest = model(ids[:, 4:], cache)
    assert_close(mx.concatenate([first, rest], axis=1), whole.logits)
    assert_close(cache, whole.cache)


def test_foreign_cache_objects_are_written_too():
    model, ids = awake(), tokens(2, 9)
    cache, plain = [SlotCache(), SlotCache()], model.make_cache()
    assert mx.array_equal(model(ids, cache), model(ids, plain))
    assert_close([entry.slots for entry in cache], plain, 0)


def test_the_lengths_a_foreign_cache_carries_are_kept():
    """Two prompts of 7 and 3 tokens in chunks of 4: each row gets the state it has alone."""
    model, ids = awake(), tokens(2, 8)
    cache = [SlotCache(lengths=[7, 3]) for _ in range(2)]
    model(ids[:, :4], cache)
    assert cache[0].lengths.tolist() == [3, -1]
    model(ids[:, 4:], cache)
    for b, n in enumerate([7, 3]):
        alone = model.forward(ids[b : b + 1, :n]).cache
        assert_close([[x[b : b + 1] for x in entry.slots] for entry in cache], alone)


def test_write_back_refuses_another_number_of_blocks():
    with pytest.raises(ValueError, match="zip"):
        write_back([[None]], [[mx.zeros(1)], [mx.zeros(1)]])


# --- clamps ---------------------------------------------------------------------------------------------


def test_clamps_are_found_by_site_and_block_in_their_order():
    a, b, c = Clamp("R", 0.1), Clamp("R", 0.2, block=1), Clamp("psi", 0.3, block=1)
    given = Intervention((a, b, c))
    assert given.of("R", 1) == (a, b) and given.of("R", 0) == (a,) and given.of("psi", 0) == ()


@pytest.mark.parametrize(
    "clamp, first, expected",
    [
        (Clamp("R", 0), 0, [[1, 1, 1]] * 4),
        (Clamp("R", 0, start=1, stop=3), 0, [[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]]),
        (Clamp("R", 0, units=(0, 2), start=2), 0, [[0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 0, 1]]),
        (Clamp("R", 0, start=1, stop=3), 2, [[1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_held_tokens_and_units(clamp, first, expected):
    assert mask_clamped(clamp, first, 4, 3).astype(mx.int32).tolist() == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"units": ()}, "a clamp on 'R' of no units; name some, or None for all"),
        ({"value": 3.0}, "a clamp on 'R' to 3; expected 0 to 1"),
        ({"value": -0.1}, "a clamp on 'R' to -0.1; expected 0 to 1"),
        ({"value": mx.array([0.5, -1.5])}, r"a clamp on 'R' to array\[2\]; expected 0 to inf"),
        ({"value": math.nan}, "a clamp on 'R' to nan; expected 0 to 1"),
        ({"value": math.nan, "site": "psi"}, "a clamp on 'psi' to nan; expected a number"),
    ],
)
def test_a_clamp_holds_something_at_a_value_that_there_is(options, message):
    with pytest.raises(ConfigError, match=message):
        Clamp(**{"site": "R", "value": 0.5, **options})
    assert Clamp("psi", 3.0).value == 3.0 and Clamp("R", mx.array([0.0, 1 + 1e-6])).site == "R"


def test_an_output_clamp_holds_the_difference():
    x, y = mx.ones((1, 3, 2)), 5 * mx.ones((1, 3, 2))
    clamps = Intervention((Clamp("output", 0.25, start=1, stop=2), Clamp("output", 9.0, block=3)))
    assert clamp_output(x, y, clamps, 0)[0].tolist() == [[5, 5], [1.25, 1.25], [5, 5]]
    assert clamp_output(x, y, None, 0) is y


def test_what_load_gives_is_the_pair_that_mlx_lms_load_gives():
    """By index, unpacked and counted."""
    loaded = Trained(nn.Linear(2, 2), ByteTokenizer(), "somewhere", "d" * 64)
    model, tokenizer = loaded
    assert loaded[0] is model is loaded.model and loaded[1] is tokenizer is loaded.tokenizer
    assert len(loaded) == 2 and loaded[-1] is tokenizer
    with pytest.raises(IndexError):
        loaded[2]


class Unfinished(LanguageModel):
    """Of a family whose author has written no method yet."""


class UnfinishedRecurrence(RecurrentModel):
    """The same, with what recurrent families share."""


MISSING = {
    Unfinished: {
        "forward": lambda model: model(mx.array([[1]])),
        "make_cache": lambda model: model.make_cache(),
        "layers": lambda model: model.layers,
        "cast_predicate": lambda model: model.cast_predicate,
        "quant_predicate": lambda model: model.quant_predicate,
    },
    UnfinishedRecurrence: {
        "layers": lambda model: model.make_cache(),
        "embed": lambda model: model.embed(mx.array([[1]])),
        "finish": lambda model: model.finish(mx.zeros((1, 1, 4))),
        "project": lambda model: model.project(mx.zeros((1, 1, 4))),
    },
}


@pytest.mark.parametrize("family, method", [(f, name) for f, uses in MISSING.items() for name in uses])
def test_a_family_that_lacks_a_method_is_told_which(family, method):
    model = family.__new__(family)
    nn.Module.__init__(model)
    expected = (
        f"{family.__name__} has no {method}, and no family can do without it; define "
        f"{family.__name__}.{method} as kssm_mlx/models/mamba.py does"
    )
    with pytest.raises(NotImplementedError, match=re.escape(expected)):
        MISSING[family][method](model)
