"""Oscillators: our integrator and the bank of groups beside NumPy and JAX, with the error against float64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import mlx.core as mx
import numpy as np

from kssm_mlx.bench.measure import Case, Contender, arrays
from kssm_mlx.ops.kuramoto_bank import kuramoto_bank, kuramoto_bank_reference
from kssm_mlx.oscillators.integrate import RK4, integrate, runge_kutta
from kssm_mlx.oscillators.kuramoto import Phases, mean_field
from kssm_mlx.oscillators.planar import Planar

COUPLING, DT = 3.0, 0.05
GROUPS, PER_GROUP, TOKENS = 256, 128, 256


def oscillator_cases(counts: tuple[int, ...]) -> Iterator[Case]:
    for N in counts:
        # About as much work for every N.
        steps = max(5, min(200, 2_000_000 // N))
        yield Case(
            f"oscillators/mean-field/N{N}",
            f"Kuramoto mean field, RK4, N {N:,}, {steps} steps",
            N * steps,
            "oscillator steps",
            lambda N=N, steps=steps: _integrators(N, steps),
            {"N": N, "steps": steps, "error": lambda N=N, steps=steps: errors(N, steps)},
        )
    yield Case(
        "oscillators/bank/forward",
        f"kuramoto_bank, {GROUPS} groups of {PER_GROUP}, {TOKENS} Euler steps",
        GROUPS * PER_GROUP * TOKENS,
        "oscillator steps",
        _banks,
    )


def _integrators(N: int, steps: int) -> dict[str, Contender]:
    theta, omega = _population(N)
    ours = mx.array(theta, mx.float32), mx.array(omega, mx.float32)
    # In float64 NumPy would do twice the work of the others.
    narrow = theta.astype(np.float32), omega.astype(np.float32)
    found = {"numpy float32": Contender(lambda: _numpy(*narrow, steps), mlx=False)}
    if find_spec("jaxkuramoto"):
        run = _jax(narrow[1], steps)
        found["jaxkuramoto"] = Contender(lambda: run(narrow[0]).block_until_ready(), mlx=False)
    return found | {"ours": arrays(lambda: _integrate_ours(*ours, steps))}


def errors(N: int, steps: int) -> dict[str, float]:
    """|R - R in float64| after the last step, of each contender."""
    theta, omega = _population(N)
    exact = _coherence(_numpy(theta, omega, steps))
    narrow = theta.astype(np.float32), omega.astype(np.float32)
    last = {
        "numpy float32": _numpy(*narrow, steps),
        "ours": _integrate_ours(mx.array(narrow[0]), mx.array(narrow[1]), steps),
    }
    if find_spec("jaxkuramoto"):
        last["jaxkuramoto"] = _jax(narrow[1], steps)(narrow[0])
    return {name: abs(_coherence(np.array(phases)) - exact) for name, phases in last.items()}


def _population(N: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.uniform(-np.pi, np.pi, N), random.standard_normal(N)


def _integrate_ours(theta: mx.array, omega: mx.array, steps: int) -> mx.array:
    return integrate(Phases(mean_field), theta, DT, steps, (omega, COUPLING), method="rk4")[0]


def _numpy(theta: np.ndarray, omega: np.ndarray, steps: int) -> np.ndarray:
    def slope(theta: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(theta), np.sin(theta)
        x, y = cos.mean(), sin.mean()
        return omega + theta.dtype.type(COUPLING) * (y * cos - x * sin)

    for _ in range(steps):
        theta = runge_kutta(RK4, slope, theta, theta.dtype.type(DT)).astype(theta.dtype)
    return theta


def _jax(omega: np.ndarray, steps: int):
    """theta -> theta by jaxkuramoto's equations and its Runge-Kutta step, compiled once."""
    import jax  # pyright: ignore[reportMissingImports]
    from jaxkuramoto import Kuramoto, solver  # pyright: ignore[reportMissingImports]

    slope = Kuramoto(jax.numpy.array(omega), COUPLING).vector_fn
    step = lambda _, theta: solver.runge_kutta(slope, 0.0, DT, theta)  # noqa: E731
    return jax.jit(lambda theta: jax.lax.fori_loop(0, steps, step, theta))


def _coherence(theta: np.ndarray) -> float:
    return float(np.abs(np.exp(1j * theta.astype(np.float64)).mean()))


# ---------------------------------------------------------------------------------------------------------
# The bank: many small groups, driven token by token.


@cache
def _drive() -> tuple[mx.array, ...]:
    keys = mx.random.split(mx.random.key(0), 4)
    theta = mx.random.uniform(-3, 3, (1, GROUPS, PER_GROUP), key=keys[0])
    omega = mx.random.normal((GROUPS, PER_GROUP), key=keys[1])
    h = 0.1 * mx.random.normal((2, 1, TOKENS, GROUPS), key=keys[2])
    K, tau = mx.ones((1, TOKENS, GROUPS)), mx.full((1, TOKENS, GROUPS), 0.05)
    return theta, omega, K, h[0], h[1], tau


def _banks() -> dict[str, Contender]:
    mx.eval(_drive())
    numpy = [np.array(x) for x in _drive()]
    return {
        "textbook MLX loop": arrays(lambda: _bank(kuramoto_bank_reference)),
        "numpy float32": Contender(lambda: _numpy_bank(*numpy), mlx=False),
        "ours": arrays(mx.compile(lambda: _bank(kuramoto_bank))),
    }


def _bank(function) -> tuple[mx.array, ...]:
    theta, omega, K, re, im, tau = _drive()
    Z, theta = function(theta, omega, K, Planar(re, im), tau)
    return Z.re, Z.im, theta


def _numpy_bank(theta, omega, K, re, im, tau) -> tuple[np.ndarray, np.ndarray]:
    read = []
    for t in range(K.shape[1]):
        cos, sin = np.cos(theta), np.sin(theta)
        x = K[:, t, :, None] / 2 * cos.mean(-1, keepdims=True) + re[:, t, :, None]
        y = K[:, t, :, None] / 2 * sin.mean(-1, keepdims=True) + im[:, t, :, None]
        theta = theta + tau[:, t, :, None] * (omega + 2 * (y * cos - x * sin))
        read.append((np.cos(theta).mean(-1), np.sin(theta).mean(-1)))
    return np.array(read), theta
