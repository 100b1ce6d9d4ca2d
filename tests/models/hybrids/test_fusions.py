"""Each fusion is its formula: an oracle in numpy on random branches, twice in a row where it remembers."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.models.hybrids.fusions import FUSIONS
from tests.support.model_contract import moved

pytestmark = pytest.mark.usefixtures("uncompiled")
B, T, D, SHARE = 2, 3, 4, 0.3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normed(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def blend(r, m, q):
    return q * r + (1 - q) * m


def both(r, m):
    return np.concatenate([r, m], -1)


def gates(p, x):
    return sigmoid(x @ p["gate.weight"].T + p["gate.bias"])


def hy(p, r, m, h):
    r, m = normed(r, p["norm_rwkv.weight"]), normed(m, p["norm_mamba.weight"])
    return p["gain_rwkv"] * r + p["gain_mamba"] * m, None


def gated(p, r, m, h):
    return blend(r, m, gates(p, both(r, m))), None


def gru(p, r, m, h):
    states = []
    for t in range(T):
        x = both(r, m)[:, t] @ p["inputs.weight"].T + p["inputs.bias"]
        y = h @ p["recurrent.weight"].T + p["recurrent.bias"]
        reset, keep = (sigmoid(x[:, i : i + D] + y[:, i : i + D]) for i in (0, D))
        h = (1 - keep) * np.tanh(x[:, 2 * D :] + reset * y[:, 2 * D :]) + keep * h
        states.append(h)
    return blend(r, m, gates(p, np.stack(states, 1))), h


def mingru(p, r, m, h):
    drive = both(normed(r, p["norm_rwkv.weight"]), normed(m, p["norm_mamba.weight"])) @ p["inputs.weight"].T
    c, z = np.split(drive, 2, axis=-1)
    states = []
    for t in range(T):
        candidate = np.where(c[:, t] >= 0, c[:, t] + 0.5, sigmoid(c[:, t]))
        h = (1 - sigmoid(z[:, t])) * h + sigmoid(z[:, t]) * candidate
        states.append(h)
    return blend(r, m, gates(p, np.stack(states, 1))), h


ORACLES = {
    "hy": hy,
    "fixed": lambda p, r, m, h: (blend(r, m, SHARE), None),
    "ws": lambda p, r, m, h: (blend(r, m, p["share"]), None),
    "gf": gated,
    "hgf": gated,
    "cp": lambda p, r, m, h: (both(r, m) @ p["project.weight"].T, None),
    "rf": lambda p, r, m, h: (r + m @ p["project.weight"].T, None),
    "gru": gru,
    "mingru": mingru,
}
WIDTHS = {"gru": D, "mingru": 3 * D // 2}


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_is_its_formula(name):
    fusion = moved(FUSIONS[name](mx.random.key(0), D, SHARE), by=0.5)
    p = {path: np.array(a, np.float64) for path, a in tree_flatten(fusion.parameters())}
    state = [None] * len(fusion.slots)
    h = np.zeros((B, WIDTHS.get(name, 0)))
    for seed in (1, 2):
        r, m = (mx.random.normal((B, T, D), key=mx.random.key(10 * seed + i)) for i in (0, 1))
        y, state, _ = fusion(r, m, state, None, None)
        expected, h = ORACLES[name](p, np.array(r, np.float64), np.array(m, np.float64), h)
        np.testing.assert_allclose(y, expected, atol=2e-5)
        if fusion.slots:
            np.testing.assert_allclose(state[0], h, atol=2e-5)


def test_residual_fusion_begins_with_little_of_mamba():
    wide = FUSIONS["rf"](mx.random.key(0), 128, SHARE)
    assert mx.std(wide.project.weight).item() == pytest.approx(0.01, rel=0.05)
