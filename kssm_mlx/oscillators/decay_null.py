"""How coherent K-SSM v3 gets without learning anything: weight decay alone narrows its frequencies.

Decoupled decay multiplies every parameter by 1 - lr_t wd, whatever the data say. In v3 it reached the natural
frequencies, N values from -pi to pi, and the width delta of the phase noise. A narrower spread is a larger R:

    s_t = prod (1 - lr_t wd),  theta = s_t omega_0,  theta' = theta + K R sin(psi - theta)
    R_t = |mean exp(i theta')| exp(-(s_t delta)^2 / 2)

Subtract this curve before reading anything into a rise of R.
"""

from __future__ import annotations

import numpy as np


def shrinkage(learning_rates: np.ndarray, weight_decay: float) -> np.ndarray:
    """s: what is left of a parameter that no gradient moves, before each step and after. [T] -> [T + 1]."""
    kept = 1 - np.asarray(learning_rates, np.float64) * weight_decay
    return np.concatenate([[1.0], np.cumprod(kept)])


def coherence_under_decay(
    s: np.ndarray, u: float | np.ndarray, *, oscillators: int = 192, delta: float = 0.2
) -> np.ndarray:
    """R of a bank that has shrunk to s of its start, with coupling K = 2 sigmoid(u).

    Shapes: s [...] and u, which broadcasts to it -> [...].
    Truth: the published R of two runs of K-SSM v3 and of the control, within 0.02 at every step reported.
    Source: docs/background/k-ssm.md#r-climbs-by-weight-decay.
    """
    s = np.asarray(s, np.float64)
    K = 2 / (1 + np.exp(-np.broadcast_to(u, s.shape)))[..., None]
    theta = s[..., None] * np.linspace(-np.pi, np.pi, oscillators)
    Z = np.exp(1j * theta).mean(axis=-1, keepdims=True)
    theta = theta + K * np.imag(Z * np.exp(-1j * theta))
    R = np.abs(np.exp(1j * theta).mean(axis=-1))
    return R * np.exp(-((s * delta) ** 2) / 2)
