"""Shared apparatus of the physics tests: float64 arrays and steady states."""

import mlx.core as mx
import numpy as np

from kssm_mlx.oscillators.frequencies import Frequencies
from kssm_mlx.oscillators.integrate import integrate
from kssm_mlx.oscillators.order import coherence


def f64(values) -> mx.array:
    """A float64 array; MLX computes with it on the CPU stream only (fixture `float64`)."""
    return mx.array(np.asarray(values, dtype=np.float64), dtype=mx.float64)


def quantiles(family: str, width: float, n: int) -> mx.array:
    return mx.array(Frequencies(family, width).quantiles(n), dtype=mx.float32)


def random_phases(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.uniform(-np.pi, np.pi, shape, key=mx.random.key(seed))


def steady_coherence(system, theta, time, args, *, dt=0.05, share=0.25, **options) -> np.ndarray:
    """R averaged over the last `share` of the time. Shapes: theta [..., N] -> [...]."""
    steps = round(time / dt)
    _, record = integrate(system, theta, dt, steps, args, observe=coherence, every=10, **options)
    return np.array(record)[-max(1, round(share * steps / 10)) :].mean(axis=0)
