"""States as they are recorded and set: ours by slot or by their own view, of others all they carry."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks.core import state_recording as recording
from kssm_mlx.checks.core.registry import NotMeasurable
from kssm_mlx.models import build, configure
from tests.support.fakes import TinyRecurrent

TOKENS = np.array([[1, 2, 3, 4, 5]], np.int32)


OURS = [build(configure(name, "xs", vocab_size=32)) for name in ("kssm", "mamba", "hybrid")]
every_model = pytest.mark.parametrize("model", [TinyRecurrent(), *OURS], ids=lambda m: m.model_type)


@every_model
def test_every_token_leaves_the_state_that_the_text_so_far_does(model):
    states = recording.record_states(model, TOKENS)
    for t in (1, 3, 5):
        cache = model.forward(mx.array(TOKENS[:, :t]), model.make_cache()).cache
        views = recording.view_states(model, cache)
        assert states.keys() == views.keys()
        for name, view in views.items():
            assert states[name].shape == (1, 5, view.shape[1])
            assert states[name][:, t - 1] == pytest.approx(np.array(view), abs=1e-4)


@every_model
def test_a_state_that_is_set_is_read_again_and_nothing_else_moves(model):
    cache = model.forward(mx.array(TOKENS), model.make_cache()).cache
    changed = {name: 0.5 * view for name, view in recording.view_states(model, cache).items()}
    new = recording.with_views(model, cache, changed)
    for name, view in recording.view_states(model, new).items():
        assert np.array(view) == pytest.approx(np.array(changed[name]), abs=1e-6)
    for before, after in zip(cache, new, strict=True):
        assert [a.shape for a in before] == [a.shape for a in after]
        assert [a.dtype for a in before] == [a.dtype for a in after]


def test_a_foreign_entry_of_several_arrays_is_one_view():
    entry = [mx.ones((2, 3)), mx.zeros((2,), mx.int32), mx.full((2, 2, 2), 4.0)]
    view = recording.view_states(TinyRecurrent(), [entry])["block 0"]
    assert view.tolist() == [[1, 1, 1, 4, 4, 4, 4]] * 2
    (again,) = recording.with_views(TinyRecurrent(), [entry], {"block 0": 2 * view})
    assert [a.tolist() for a in again] == [[[2] * 3] * 2, [0, 0], [[[8, 8], [8, 8]]] * 2]


def test_a_model_without_a_state_is_not_measured():
    class NoForward:
        def make_cache(self):
            return [[None]]

    with pytest.raises(NotMeasurable, match=r"no make_cache\(\) and forward\(\)"):
        recording.refuse_stateless(NoForward())
    with pytest.raises(NotMeasurable, match="carries no state"):
        recording.record_states(build(configure("kssm_v3", "xs", vocab_size=32)), TOKENS)
