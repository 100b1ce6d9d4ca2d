"""Phase cores are their equations: oracles in numpy of what was published and of what became of it."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.models.grafts.configs import HookGraft, LogitGraft, PhaseBlockGraft
from kssm_mlx.models.grafts.phase_cores import HookCore, LogitCore, PhaseBlock
from tests.support.model_contract import moved

pytestmark = pytest.mark.usefixtures("uncompiled")
B, T, D, N = 2, 3, 6, 5
both = pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "repaired"])


def at_work(core, x):
    """What a core without noise makes of x, and of x once more: its numbers, x, then y and trace twice."""
    for part in core.modules():
        if "sigma" in part:
            part.sigma = mx.array(0.0)
    p = {path: np.array(a, np.float64) for path, a in tree_flatten(core.parameters())}
    y, phases, trace = core(x, None, None, None, None)
    again, _, more = core(x, phases, None, None, None)
    return p, np.array(x, np.float64), (y, trace), (again, more)


def stream(width=D):
    return mx.random.normal((B, T, width), key=mx.random.key(7))


def affine(p, name, x):
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def same_angle(got, expected):
    np.testing.assert_allclose(np.exp(1j * np.array(got)), np.exp(1j * expected), atol=3e-5)


def coupled(theta, p, K, dt):
    """θ + dt (ω + K/N Σ_j sin(θ_j - θ_i)), by pairs."""
    pull = np.sin(theta[..., None, :] - theta[..., None]).mean(-1)
    return theta + dt * (p["omega"] + K * pull)


def pushed(p, x, prefix=""):
    return 0.1 * np.pi * np.tanh(affine(p, f"{prefix}encoder", x))


@both
def test_the_phase_block(legacy):
    """The block inside Mamba: two steps, the output, and standardised channels where it was published."""
    config = PhaseBlockGraft(legacy=legacy, rank=2, steps=2, dt=0.3, k_scale=0.7)
    core = moved(PhaseBlock(config, D, mx.random.key(0)), by=0.4)
    p, x, (y, trace), _ = at_work(core, stream())
    theta, K = np.pi * np.tanh(affine(p, "encoder", x)), p["k_scale"] * p["U"] @ p["V"].T
    for _ in range(2):
        pull = (K * np.sin(theta[..., None, :] - theta[..., None])).sum(-1)
        theta = theta + p.get("dt", 0.3) * (p["omega"] + np.clip(pull, -10, 10))
        theta = np.clip(theta, -2 * np.pi, 2 * np.pi) if legacy else theta
    same_angle(trace["theta"], theta)
    np.testing.assert_allclose(trace["R"][..., 0], np.abs(np.exp(1j * theta).mean(-1)), atol=1e-5)
    out = x * np.cos(theta) * sigmoid(affine(p, "gain", x)) + 0.01 * np.tanh(affine(p, "shift", x))
    if legacy:
        out = (out - out.mean(-1, keepdims=True)) / np.sqrt(out.var(-1, keepdims=True) + 1e-5)
    else:
        out = x + p["gate"] * (out - x)
    np.testing.assert_allclose(y, out, atol=1e-4)


def gained(p, x, theta):
    return x * (1 + 0.1 * np.tanh(affine(p, "modulator", np.sin(theta))))


def test_the_legacy_hook_is_pushed_by_the_mean_and_goes_on_from_the_last_call():
    """In a hook: φ' = φ + .1 p, φ = φ' + dt (ω + K/N Σ sin), the same at every token; x (1 + .1 tanh)."""
    core = moved(HookCore(HookGraft(legacy=True, oscillators=N, K=1.7), D, mx.random.key(0)), by=0.4)
    p, x, *calls = at_work(core, stream())
    theta = p["phases"]
    for y, trace in calls:
        theta = coupled(theta + pushed(p, x.mean((0, 1))), p, p["K"], 0.1)
        same_angle(trace["theta"], np.broadcast_to(theta, (B, T, N)))
        np.testing.assert_allclose(trace["R"], np.abs(np.exp(1j * theta).mean()), atol=1e-5)
        np.testing.assert_allclose(y, gained(p, x, theta), atol=1e-5)


def test_the_repaired_hook_walks_from_token_to_token():
    core = moved(HookCore(HookGraft(oscillators=N, K=1.7), D, mx.random.key(0)), by=0.4)
    p, x, *calls = at_work(core, stream())
    theta = np.tile(2 * np.pi * np.arange(N) / N - np.pi, (B, 1))
    for y, trace in calls:
        for t in range(T):
            theta = coupled(theta + pushed(p, x[:, t]), p, p["K"], 0.1)
            same_angle(trace["theta"][:, t], theta)
            np.testing.assert_allclose(y[:, t], gained(p, x[:, t], theta), atol=1e-5)


@both
def test_the_logit_core_is_a_hook_between_two_projections(legacy):
    config = LogitGraft(legacy=legacy, width=D, oscillators=N)
    core = moved(LogitCore(config, 11, mx.random.key(0)), by=0.3)
    p, x, (y, trace), _ = at_work(core, stream(11))
    seen = affine(p, "down", x)
    inner = {name.removeprefix("core."): value for name, value in p.items()}
    changed = gained(inner, seen, np.array(trace["theta"], np.float64))
    out = affine(p, "up", changed)
    np.testing.assert_allclose(y, out if legacy else x + out, atol=1e-4)
    pooled = seen.mean((0, 1)) if legacy else seen[:, 0]
    start = inner["phases"] if legacy else 2 * np.pi * np.arange(N) / N - np.pi
    first = coupled(start + pushed(inner, pooled), inner, inner["K"], 0.1)
    same_angle(trace["theta"][:, 0], np.broadcast_to(first, (B, N)))
