"""K-SSM v1: its equations, and what its published intervention did."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.models.base import Clamp, Intervention
from tests.support.small_kssm import tokens
from tests.support.small_precursors import precursor

pytestmark = pytest.mark.usefixtures("uncompiled")


def gelu(x):
    from scipy.special import erf

    return x * (1 + erf(x / np.sqrt(2))) / 2


def test_the_equations_in_numpy():
    model, ids = precursor("kssm_v1"), tokens(2, 7)
    p = {
        name.removeprefix("blocks.0."): np.array(a, np.float64)
        for name, a in tree_flatten(model.parameters())
    }
    f = p["embedding.weight"][np.array(ids)] @ p["to_frequency.weight"].T + p["to_frequency.bias"]
    theta = p["omega"] + f
    c, s = np.cos(theta).mean(-1, keepdims=True), np.sin(theta).mean(-1, keepdims=True)
    theta = theta + 2.0 * (s * np.cos(theta) - c * np.sin(theta))
    features = []
    for n in range(1, 5):
        Z = np.exp(1j * n * theta).mean(-1)
        features += [Z.real, Z.imag, np.abs(Z)]
    h = gelu(np.stack(features, -1) @ p["readout.weight"].T + p["readout.bias"])
    h = gelu(h @ p["dense.weight"].T + p["dense.bias"])
    logits = h @ p["head.weight"].T + p["head.bias"]
    np.testing.assert_allclose(model(ids), logits, atol=2e-5)


def test_R_is_a_function_of_the_current_token():
    """Up to rounding: a BLAS computes rows at the edge of its tiles otherwise, and which these are depends on
    the processor.
    """
    R = np.array(precursor("kssm_v1").forward(tokens(4, 100)).trace["block00/R"])[..., 0]
    ids = np.array(tokens(4, 100))
    by_token = [R[ids == token] for token in np.unique(ids)]
    assert max(map(np.ptp, by_token)) < 1e-6
    assert np.diff(sorted(values.mean() for values in by_token)).min() > 1e-5


def test_the_forced_R_is_not_the_R_that_results_and_the_trace_says_so():
    model, ids = precursor("kssm_v1"), tokens(4, 50)
    achieved = {}
    for F in (0.0, 0.2, 0.5, 0.9, 1.0):
        out = model.forward(ids, intervention=Intervention((Clamp("forced_R", F),)))
        theta = np.array(out.trace["block00/theta"], np.float64)
        np.testing.assert_allclose(
            out.trace["block00/R"][..., 0], np.abs(np.exp(1j * theta).mean(-1)), atol=1e-6
        )
        achieved[F] = out.trace["block00/R"].mean().item()
    free = model.forward(ids)
    assert achieved[0.0] == pytest.approx(free.trace["block00/R"].mean().item(), abs=1e-6)
    assert achieved[1.0] == pytest.approx(1, abs=1e-5)
    assert achieved[0.2] < achieved[0.5] < achieved[0.9] - 0.05
    assert achieved[0.9] > 0.95


def test_forcing_reaches_the_logits_of_the_held_tokens_only():
    model, ids = precursor("kssm_v1"), tokens(2, 9)
    forced = model.forward(ids, intervention=Intervention((Clamp("forced_R", 0.9, start=2, stop=4),)))
    change = mx.abs(forced.logits - model(ids)).max(axis=(0, 2))
    assert change[2:4].min().item() > 1e-3
    assert change[:2].max().item() == change[4:].max().item() == 0


def test_sampling_follows_R():
    """Its published sampling: T = 1.5 - 0.5 R of the token just read, through the whole of generation."""
    from kssm_mlx.data.tokenizers.plain import ByteTokenizer
    from kssm_mlx.generation import generate
    from kssm_mlx.models import build, configure

    model = build(configure("kssm_v1", "xs", vocab_size=256))
    model.head.weight = 20 * model.head.weight
    R = model.forward(mx.array([[65]])).trace["block00/R"].item()
    options = {"max_tokens": 1, "seeds": list(range(40))}
    drawn, same, warm = (
        [c.ids for c in generate(model, ByteTokenizer(), ["A"] * 40, temperature=t, **options)]
        for t in ("R", 1.5 - 0.5 * R, 1.5)
    )
    assert drawn == same != warm
