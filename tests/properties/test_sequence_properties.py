"""What holds for every cut, padding and document boundary, on examples that hypothesis chooses."""

from functools import cache
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kssm_mlx.ops.mobius_scan import mobius_scan
from kssm_mlx.oscillators.mobius import Disc, act, compose, kick_leaf
from kssm_mlx.oscillators.planar import Planar
from tests.support.small_kssm import assert_close, awake, tokens

T = 40
every_model = pytest.mark.parametrize("name", ["kick", "coupled hold"])
model_of = cache(awake)
few = settings(max_examples=8)
pytestmark = pytest.mark.usefixtures("uncompiled")


@every_model
@few
@given(cuts=st.sets(st.integers(1, T - 1), max_size=4))
def test_cut_into_any_pieces(name, cuts):
    model, ids = model_of(name), tokens(2, T)
    whole, cache, logits = model.forward(ids), None, []
    for piece in mx.split(ids, sorted(cuts), axis=1) if cuts else [ids]:
        out = model.forward(piece, cache)
        cache = out.cache
        logits.append(out.logits)
    assert_close(mx.concatenate(logits, axis=1), whole.logits)
    assert_close(cache, whole.cache)


@every_model
@few
@given(lengths=st.lists(st.integers(1, T), min_size=1, max_size=4))
def test_any_padding(name, lengths):
    model, ids = model_of(name), tokens(len(lengths), T)
    together = model.forward(ids, lengths=mx.array(lengths))
    for b, n in enumerate(lengths):
        alone = model.forward(ids[b : b + 1, :n])
        assert_close(together.logits[b : b + 1, :n], alone.logits)
        assert_close([[x[b : b + 1] for x in entry] for entry in together.cache], alone.cache)


@every_model
@few
@given(starts=st.sets(st.integers(0, T - 1), min_size=1, max_size=5))
def test_any_documents(name, starts):
    """Documents in one row are documents alone; what comes before the first boundary goes on."""
    model, ids = model_of(name), tokens(1, T)
    resets = mx.array(np.isin(np.arange(T), list(starts)))[None]
    out, bounds = model.forward(ids, resets=resets), [*sorted(starts), T]
    for begin, end in pairwise(bounds):
        alone = model.forward(ids[:, begin:end])
        assert_close(out.logits[:, begin:end], alone.logits)
    assert_close(out.cache, alone.cache)


disc = st.complex_numbers(max_magnitude=0.95, allow_nan=False)
field = st.complex_numbers(max_magnitude=3, allow_nan=False)


@few
@given(steps=st.lists(st.tuples(disc, field), min_size=3, max_size=12), z=disc, split=st.data())
def test_maps_of_the_disc_associate_and_stay_passive(steps, z, split):
    """Composed in any grouping they are the serial loop; |q|, |r| <= 1 and |d| <= 1 - |q|^2 throughout."""
    maps = [kick_leaf(np.complex128(a), np.complex128(h)) for a, h in steps]
    cut = split.draw(st.integers(1, len(maps) - 1))
    left, right = _all(maps[:cut]), _all(maps[cut:])
    expected = np.complex128(z)
    for m in maps:
        expected = act(m, expected)
    for whole in (compose(right, left), _all(maps)):
        assert abs(act(whole, np.complex128(z)) - expected) < 1e-9
        assert abs(whole.q) <= 1 + 1e-12 and abs(whole.r) <= 1 + 1e-12
        assert abs(whole.d) <= 1 - abs(whole.q) ** 2 + 1e-12


def _all(maps: list[Disc]) -> Disc:
    whole = maps[0]
    for m in maps[1:]:
        whole = compose(m, whole)
    return whole


@few
@given(size=st.floats(0.01, 0.99), turn=st.floats(-3.1, 3.1), cut=st.integers(1, T - 1))
def test_turning_all_fields_turns_all_states(size, turn, cut):
    """Kuramoto's symmetry theta -> theta + c, through the scan and across a hand-over."""
    rng = np.random.default_rng(0)
    z = size * rng.uniform(-0.7, 0.7, (2, 1, T, 3)) + 1j * size * rng.uniform(-0.7, 0.7, (2, 1, T, 3))
    a, k = (Planar(mx.array(x.real, mx.float32), mx.array(x.imag, mx.float32)) for x in z)
    spin = Planar(mx.array(np.cos(turn), mx.float32), mx.array(np.sin(turn), mx.float32))
    plain, turned = mobius_scan(a, k), mobius_scan(a, k * spin)
    np.testing.assert_allclose((plain * spin).re, turned.re, atol=3e-6)
    np.testing.assert_allclose((plain * spin).im, turned.im, atol=3e-6)
    rest = mobius_scan(
        *(x.map(lambda p: p[:, cut:]) for x in (a, k * spin)), turned.map(lambda p: p[:, cut - 1])
    )
    np.testing.assert_allclose(rest.re, turned.re[:, cut:], atol=3e-6)
