"""Measures of states and activations beside scipy, or beside their definitions written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import stats as scipy_stats
from scipy.spatial.distance import cosine

from kssm_mlx.metrics import amplitude, state
from tests.support.statistics_cases import SAMPLES, SEEDS, Case, samples


def _states() -> Iterator[tuple[str, np.ndarray]]:
    for n, T, seed in itertools.product((1, 2, 5, 30), (2, 3, 40), SEEDS):
        yield f"n {n}, T {T}, seed {seed}", np.random.default_rng([n, T, seed]).normal(0.2, 1, (2, T, n))


def _of_states(ours: Callable[..., Any], theirs: Callable[[np.ndarray], Any]) -> Callable[[], Iterator[Case]]:
    return lambda: (Case(name, ours(s), theirs(s)) for name, s in _states())


def _flat(s: np.ndarray) -> np.ndarray:
    return s.reshape(-1, s.shape[-1])


def _singular(s: np.ndarray) -> np.ndarray:
    return np.linalg.svd(_flat(s) - _flat(s).mean(axis=0), compute_uv=False)


def _pairs(s: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(row[t - 1], row[t]) for row in s for t in range(1, s.shape[1])]


def _relative(s: np.ndarray) -> np.ndarray:
    moved = [math.dist(a, b) / math.hypot(*a) for a, b in _pairs(s)]
    return np.array(moved).reshape(len(s), -1)


def _worldview(s: np.ndarray) -> float:
    moved = _relative(s).ravel()
    return _rank(_singular(s)) * float(np.mean(moved > 2 * np.median(moved)))


def _rank(sigma: np.ndarray) -> float:
    return math.exp(scipy_stats.entropy(sigma))


def _retention() -> Iterator[Case]:
    for name, kind, n, rng in samples():
        gaps = np.abs(SAMPLES[kind](rng, n)) + 1e-3
        yield Case(name, state.retention(gaps), scipy_stats.gmean(gaps[1:] / gaps[:-1]))
    yield Case("one gap", state.retention(np.array([1.0])), math.nan)
    yield Case("no gap", state.retention(np.zeros(5)), 0.0)


def _half_life() -> Iterator[Case]:
    for rho in np.linspace(0.01, 0.999, 60):
        yield Case(f"rho {rho:.3f}", float(rho) ** state.half_life(float(rho)), 0.5)


def _reach() -> Iterator[Case]:
    """The halfway point of a line that falls from distance to distance."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        at, fall = np.sort(rng.choice(60, 6, replace=False)), np.sort(rng.uniform(0, 1, 6))[::-1]
        fall[-1] = 0.0
        yield Case(
            f"seed {seed}",
            state.reach(dict(zip(at.tolist(), (fall + 0.1).tolist(), strict=True)), 0.1),
            np.interp(-fall[0] / 2, -fall, at),
        )


def _selectivity() -> Iterator[Case]:
    for a, b in itertools.product((0.1, 0.5, 1.0), (0.0, 0.3, 1.0)):
        yield Case(f"{a}, {b}", state.selectivity(a, b), 1 - b / a)


def _logits() -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    for n, V, seed in itertools.product((2, 3, 40), (2, 7, 50), SEEDS):
        rng = np.random.default_rng([n, V, seed])
        yield (
            f"n {n}, V {V}, seed {seed}",
            rng.normal(0, 1, (n, 9)),
            rng.normal(0, 1, (V, 9)),
            rng.integers(0, V, n),
        )


def _margin(x: np.ndarray, weight: np.ndarray, y: int) -> tuple[float, float]:
    """The margin in logits, and the activation along the direction that decides it."""
    logits = [math.fsum(x * row) for row in weight]
    other = max((i for i in range(len(weight)) if i != y), key=lambda i: logits[i])
    gap = weight[y] - weight[other]
    return logits[y] - logits[other], math.fsum(x * gap) / math.hypot(*gap)


def _margins() -> Iterator[Case]:
    for name, x, weight, y in _logits():
        theirs = [_margin(*row)[0] for row in zip(x, [weight] * len(x), y, strict=True)]
        yield Case(name, amplitude.margins(x @ weight.T, y), theirs)


def _signal() -> Iterator[Case]:
    for name, x, weight, y in _logits():
        margin, a = np.array([_margin(*row) for row in zip(x, [weight] * len(x), y, strict=True)]).T
        spread = scipy_stats.tstd(a)
        yield Case(name, amplitude.signal(x, weight, y), [a.mean(), spread, a.mean() / spread, margin.mean()])


def _amplitude() -> Iterator[Case]:
    for n, d, seed in itertools.product((1, 2, 40), (2, 3, 64), SEEDS):
        x = np.random.default_rng([n, d, seed]).normal(0, 2, (n, d))
        A = math.fsum(math.hypot(*row) for row in x) / n
        spread = math.fsum(scipy_stats.tstd(row) for row in x) / n
        yield Case(f"n {n}, d {d}, seed {seed}", amplitude.amplitude(x), [A, A / math.sqrt(d), spread**2])
        yield Case(f"n {n}, d {d}, noise", amplitude.snr_db(x, 0.5), 10 * math.log10(x.var() / 0.25))


ACTIVITY: dict[str, Callable[[], Iterator[Case]]] = {
    "retention": _retention,
    "half_life": _half_life,
    "energy_entropy": _of_states(
        state.energy_entropy,
        lambda s: float(np.mean(scipy_stats.entropy(_flat(s) ** 2, axis=-1))) / math.log(max(2, s.shape[-1])),
    ),
    "spectrum": _of_states(
        lambda s: state.spectrum(s)[: np.linalg.matrix_rank(_flat(s) - _flat(s).mean(axis=0))],
        lambda s: _singular(s)[: np.linalg.matrix_rank(_flat(s) - _flat(s).mean(axis=0))],
    ),
    "effective_rank": _of_states(lambda s: state.effective_rank(_singular(s)), lambda s: _rank(_singular(s))),
    "top_share": _of_states(
        lambda s: state.top_share(_singular(s), 2), lambda s: sum(_singular(s)[:2]) / math.fsum(_singular(s))
    ),
    "dead_share": _of_states(
        lambda s: state.dead_share(s * (np.arange(s.shape[-1]) % 2)),
        lambda s: (s.shape[-1] + 1) // 2 / s.shape[-1],
    ),
    "consecutive_cosine": _of_states(
        state.consecutive_cosine, lambda s: np.mean([1 - cosine(a, b) for a, b in _pairs(s)])
    ),
    "updates": _of_states(lambda s: state.updates(s).ravel(), lambda s: _relative(s).ravel()),
    "worldview": _of_states(state.worldview, _worldview),
    "reach": _reach,
    "selectivity": _selectivity,
    "margins": _margins,
    "signal": _signal,
    "amplitude, snr_db": _amplitude,
}
