"""How large activations are, and how much of that is signal. Pure numpy, for the clamp experiment.

Behind a layer norm A and sigma² are one number: |x|² = d (mean² + variance), so sigma² = A² / (d - 1). What
the theory is about, a mean that shifts against a spread, is measured along the direction that decides:

    u = (W_y - W_runner-up) / |.|;  a = <x, u>;  A_sig = E[a];  sigma_sig² = Var[a];  d' = A_sig / sigma_sig

Source: docs/background/allostasis.md#amplitude, #signal-and-noise and #noise-levels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Amplitude(NamedTuple):
    """A: mean norm of a vector; A_norm: A / sqrt(d), 1 behind a norm; sigma2: squared mean over tokens of the
    standard deviation over features (unbiased).
    """

    A: float
    A_norm: float
    sigma2: float


class Signal(NamedTuple):
    """A_sig, sigma_sig and d' of the activation along the deciding direction; the mean margin in logits."""

    A_sig: float
    sigma_sig: float
    d_prime: float
    margin: float


def amplitude(x: np.ndarray) -> Amplitude:
    """Shapes: x [..., d], d >= 2."""
    x = np.asarray(x, np.float64)
    A = float(np.linalg.norm(x, axis=-1).mean())
    return Amplitude(A, A / math.sqrt(x.shape[-1]), float(x.std(axis=-1, ddof=1).mean()) ** 2)


def margins(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """z_true - max z_other, negative where the first choice is wrong.

    Shapes: logits [N, V], targets [N] -> [N].
    """
    logits = np.asarray(logits, np.float64)
    true = np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return true - _without_target(logits, targets).max(axis=-1)


def signal(x: np.ndarray, weight: np.ndarray, targets: np.ndarray, bias: np.ndarray | float = 0.0) -> Signal:
    """Of what the head reads, against the strongest wrong answer of every token.

    Shapes: x [N, d], weight [V, d], targets [N], bias [V].
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    logits = x @ weight.T + bias
    direction = weight[targets] - weight[_without_target(logits, targets).argmax(axis=-1)]
    # Two rows of the head may be equal, and then nothing is decided along them.
    a = (x * direction).sum(axis=-1) / np.maximum(np.linalg.norm(direction, axis=-1), 1e-12)
    spread = float(a.std(ddof=1))
    return Signal(
        float(a.mean()), spread, float(a.mean()) / max(spread, 1e-12), float(margins(logits, targets).mean())
    )


def snr_db(clean: np.ndarray, sigma: float) -> float:
    """10 log10 of the variance of the clean activations over that of the noise."""
    return 10 * math.log10(float(np.var(np.asarray(clean, np.float64))) / sigma**2)


def _without_target(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The logits with the target's at minus infinity."""
    others = logits.copy()
    np.put_along_axis(others, targets[:, None], -np.inf, axis=-1)
    return others
