"""Is the oscillator an oscillator? Laws that every Kuramoto step keeps, measured on the step itself."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.ops.kuramoto_bank import wrap_phases
from kssm_mlx.oscillators.integrate import EVALUATE_EVERY, METHODS
from kssm_mlx.oscillators.kuramoto import Phases, mean_field

Step = Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]

ROWS, N, STEPS, DT = 5, 64, 200, 0.1
WIDTH = 1.7  # R = 0.2 at the start
EARLY = 20  # later, phases opposite to the mean have made differences of a rounding large
RISE, UNITY, SHIFT, HALVING, TURN = 0.3, 1e-6, 1e-5, 1e-2, 1e-3
WRONG = {
    "rise": "R falls under attraction: the coupling has the wrong sign, use sin(theta_j - theta_i)",
    "unity": "phases in lock-step drift apart: the coupling must vanish where all differences do",
    "shift": "R depends on where zero is: angles are mixed linearly; use their sines and cosines",
    "halving": "the result depends on dt: it is missing in a term, or a step is not a step of time",
    "turn": "a turning phase gets stuck: wrap angles, never clip them",
}


@check(
    "C40",
    level="P",
    title="oscillators obey their physics",
    source="docs/background/phase-grafts.md#phases-that-are-clipped",
)
def oscillator_physics(ctx: Context) -> Check:
    """Five laws of a step, on 64 oscillators, 200 steps of dt 0.1, from 5 random starts (normal, 1.7
    radians wide), the worst counts. rise: omega = 0, K = 1, R at the end - R at the start; unity: equal
    phases, |R - 1|; shift: the largest change of R in the first 20 steps when all phases start 2.5 radians
    further on, wrapped into [-pi, pi]; halving: relative change of R at the end with half of dt and twice
    the steps, K = 2, omega evenly over [-1, 1]; turn: equal phases with omega = 1 turn by 20 radians,
    |exp(i theta) - exp(20 i)|.

    Measured on `model.oscillator_step(theta, omega, K, dt)` (arrays [rows, N], [rows, N], [rows, 1], []),
    which the phase cores and K-SSM v1 to v3 have: the code that moves their phases, all pairs coupled alike.
    A model without single phases has none; the package's own steps are tested by the same laws.
    Threshold: rise > 0.3; unity 1e-6, shift 1e-5 and turn 1e-3, some ten roundings of float32 over the
    path; halving < 1 %, which Euler passes at this dt in a locked state.
    Caught: PhaseGPT, whose K > 0 repelled; PhaseBlock, which clipped at 2 pi; the forced R of v1, which mixed
    angles linearly.
    Sabotage: the sign of the coupling; a clip in place of a wrap; a linear mix of angles; dt forgotten.
    """
    ctx.need("model")
    if not hasattr(ctx.model, "oscillator_step"):
        raise NotMeasurable("the model has no oscillator_step(theta, omega, K, dt)")
    measured = kuramoto_laws(ctx.model.oscillator_step, ctx.seed)
    broken = _find_broken_laws(measured)
    return verdict(
        "C40",
        not broken,
        "the model's step: " + ", ".join(f"{law} {value:.1e}" for law, value in measured.items()),
        f"rise > {RISE}, unity <= {UNITY:g}, shift <= {SHIFT:g}, halving < {HALVING:g}, turn <= {TURN:g}",
        "; ".join(WRONG[law] for law in broken),
        broken=broken,
        **measured,
    )


def package_step(method: str, theta: mx.array, omega: mx.array, K: mx.array, dt: mx.array) -> mx.array:
    """A step of oscillators.integrate on the mean field, in the order of arguments that C40 asks for: what
    sabotaged steps are made of.
    """
    return METHODS[method](Phases(mean_field), theta, dt, omega, K)


def kuramoto_laws(step: Step, seed: int = 0) -> dict[str, float]:
    """The five numbers of C40, each the worst of 5 random starts."""
    theta = wrap_phases(mx.array(np.random.default_rng((seed, 40)).normal(0, WIDTH, (ROWS, N)), mx.float32))
    together, still = mx.broadcast_to(theta[:, :1], theta.shape), mx.zeros((ROWS, N))
    spread = mx.broadcast_to(mx.linspace(-1, 1, N), (ROWS, N))
    starts = mx.concatenate([theta, wrap_phases(theta + 2.5), together, theta, mx.zeros((1, N))])
    omega = mx.concatenate([still, still, still, spread, mx.ones((1, N))])
    K = mx.array([1.0] * 3 * ROWS + [2.0] * ROWS + [1.0])[:, None]
    Z = path(step, starts, omega, K, DT, STEPS)
    free, shifted, equal, locked = (np.abs(Z[:, i * ROWS : (i + 1) * ROWS]) for i in range(4))
    finer = np.abs(path(step, theta, spread, K[-ROWS - 1 : -1], DT / 2, 2 * STEPS))
    return {
        "rise": float(np.min(free[-1] - free[0])),
        "unity": float(np.max(np.abs(equal - 1))),
        "shift": float(np.max(np.abs(free - shifted)[: EARLY + 1])),
        "halving": float(np.max(np.abs(finer[-1] / locked[-1] - 1))),
        "turn": float(abs(Z[-1, -1] - np.exp(1j * STEPS * DT))),
    }


def path(step: Step, theta: mx.array, omega: mx.array, K: mx.array, dt: float, steps: int) -> np.ndarray:
    """mean exp(i theta) on the way, complex [1 + steps, rows]: the phases of the step, float64 from there."""
    time_step, visited = mx.array(dt), [theta]
    for i in range(steps):
        theta = step(theta, omega, K, time_step)
        visited.append(theta)
        if i % EVALUATE_EVERY == 0:
            mx.eval(theta)
    return np.exp(1j * np.array(mx.stack(visited), np.float64)).mean(axis=-1)


def _find_broken_laws(measured: dict[str, float]) -> list[str]:
    """The laws that do not hold; NaN keeps none."""
    limits = {"unity": UNITY, "shift": SHIFT, "halving": HALVING, "turn": TURN}
    rises = ["rise"] if not measured["rise"] > RISE else []
    return rises + [law for law, limit in limits.items() if not measured[law] <= limit]
