"""Time steppers. A method is a step `step(system, state, dt, *args) -> state`; the registry is `METHODS`.

    euler   order 1   explicit tableau
    heun    order 2   explicit tableau
    rk4     order 4   explicit tableau
    kick    order 1   turn freely for dt, then the exact impulse of the field met there (Lie splitting)
    strang  order 2   half a turn, impulse of the field at its own midpoint, half a turn

The splittings need a system of the form theta' = omega + field (`kuramoto.Phases`): between impulses each
phase turns exactly, and under a frozen field it moves by an exact Moebius map of the circle, so a step of
any size is an invertible map and oscillators with equal omega never pass each other.

Noise adds sqrt(2 D dt) N(0, 1) after each step; with euler that is Euler-Maruyama.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import mlx.core as mx

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.oscillators.kuramoto import Phases
from kssm_mlx.oscillators.order import Pair, unit_vector

System = Callable[..., mx.array]
# Steps queued before the graph is run: enough to hide the launch, few enough to bound memory.
EVALUATE_EVERY = 32


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: stage i starts from the slopes before it, weighted by rows[i]."""

    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


EULER = Tableau(((),), (1.0,))
HEUN = Tableau(((), (1.0,)), (1 / 2, 1 / 2))
RK4 = Tableau(((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def runge_kutta(tableau: Tableau, system: Callable[..., Any], state: Any, dt: Any, *args: Any) -> Any:
    """One explicit Runge-Kutta step; only + and *, so numpy arrays pass through it too."""

    def advance(weights: tuple[float, ...]) -> Any:
        return state + sum(w * dt * slope for w, slope in zip(weights, slopes) if w)

    slopes: list[Any] = []
    for row in tableau.rows:
        slopes.append(system(advance(row), *args))
    return advance(tableau.weights)


def impulse(theta: mx.array, h: Pair, dt: mx.array) -> mx.array:
    """The exact flow of theta' = 2 Im(h exp(-i theta)) over dt, h frozen.

    w = exp(i theta) goes to (w + k) / (1 + conj(k) w), k = tanh(|h| dt) h / |h|, so theta moves by 2 arg(1
    + k / w); |k| < 1 keeps that argument inside (-pi/2, pi/2), with no branch to cross.
    """
    x, y = h[0] * dt, h[1] * dt
    square = x * x + y * y
    # tanh(x) / x by its series where x is small, and no division by 0 in either branch of the gradient.
    small = square < 1e-8
    size = mx.sqrt(mx.where(small, 1.0, square))
    shrink = mx.where(small, 1 - square / 3, mx.tanh(size) / size)
    cos, sin = unit_vector(theta)
    x, y = shrink * x, shrink * y
    return theta + 2 * mx.arctan((y * cos - x * sin) / (1 + x * cos + y * sin))


def kick(system: Phases, theta: mx.array, dt: mx.array, omega: mx.array, *parameters: mx.array) -> mx.array:
    """Turn, then impulse. In an external field this is `mobius.kick_leaf`, oscillator by oscillator."""
    theta = theta + dt * omega
    return impulse(theta, system.field_at(theta, *parameters), dt)


def strang(system: Phases, theta: mx.array, dt: mx.array, omega: mx.array, *parameters: mx.array) -> mx.array:
    """Half a turn, impulse, half a turn; the field is met at the impulse's midpoint, for order 2."""
    # Symmetric in time, and therefore of even order.
    theta = theta + dt / 2 * omega
    halfway = impulse(theta, system.field_at(theta, *parameters), dt / 2)
    theta = impulse(theta, system.field_at(halfway, *parameters), dt)
    return theta + dt / 2 * omega


METHODS: dict[str, Callable[..., mx.array]] = {
    "euler": partial(runge_kutta, EULER),
    "heun": partial(runge_kutta, HEUN),
    "rk4": partial(runge_kutta, RK4),
    "kick": kick,
    "strang": strang,
}


def method_for(system: System, name: str) -> Callable[..., mx.array]:
    """The step called `name`, if it can move this system.

    Raises: ConfigError for an unknown name, or for a splitting of something that is not `Phases`.
    """
    if name not in METHODS:
        raise ConfigError(
            f"method {name!r} is unknown{nearest(name, METHODS)}; the methods are {', '.join(METHODS)}"
        )
    if METHODS[name] in (kick, strang) and not isinstance(system, Phases):
        raise ConfigError(f"method {name!r} splits first-order phase models only; use rk4 for this system")
    return METHODS[name]


@lru_cache(maxsize=64)
def compiled_step(system: System, method: str, noisy: bool) -> Callable[..., mx.array]:
    """step(state, dt, noise, key, *args), compiled once per system and method; all numbers stay arguments."""
    advance = method_for(system, method)

    def step(state: mx.array, dt: mx.array, noise: mx.array, key: mx.array, *args: mx.array) -> mx.array:
        state = advance(system, state, dt, *args)
        if not noisy:
            return state
        return state + mx.sqrt(2 * noise * dt) * mx.random.normal(state.shape, key=key).astype(state.dtype)

    return mx.compile(step)


def _stepper(
    system: System,
    dtype: mx.Dtype,
    dt: float,
    steps: int,
    args: tuple,
    method: str,
    noise: float | mx.array | None,
    key: mx.array | None,
) -> Callable[[mx.array, int], mx.array]:
    """advance(state, i): the i-th step, with everything but the state settled."""
    if noise is not None and key is None:
        raise ConfigError("noise was given without a key; pass key=mx.random.key(seed)")
    step = compiled_step(system, method, noise is not None)
    tau, amount, *rest = (_to_array(a, dtype) for a in (dt, 0.0 if noise is None else noise, *args))
    if noise is None or key is None:
        # Not None, which would be another signature and another compilation.
        silent = mx.zeros((1,))
        return lambda state, i: step(state, tau, amount, silent, *rest)
    keys = mx.random.split(key, steps)
    return lambda state, i: step(state, tau, amount, keys[i], *rest)


def _to_array(value: Any, dtype: mx.Dtype) -> mx.array:
    return value if isinstance(value, mx.array) else mx.array(value, dtype=dtype)


def flow(
    system: System,
    state: mx.array,
    dt: float,
    steps: int,
    args: tuple = (),
    *,
    method: str = "rk4",
    noise: float | mx.array | None = None,
    key: mx.array | None = None,
) -> mx.array:
    """The state after `steps` steps as one lazy graph, for mx.grad, mx.vmap, mx.compile and modest counts.

    Shapes: state and result are what `system` moves, [..., N] for phases; `args` follow the state in
    `system(state, *args)` and may be arrays or numbers (numbers take the state's dtype).
    Raises: ConfigError for an unknown method, or for noise without a key.
    """
    advance = _stepper(system, state.dtype, dt, steps, args, method, noise, key)
    for i in range(steps):
        state = advance(state, i)
    return state


def integrate(
    system: System,
    state: mx.array,
    dt: float,
    steps: int,
    args: tuple = (),
    *,
    method: str = "rk4",
    noise: float | mx.array | None = None,
    key: mx.array | None = None,
    observe: Callable[[mx.array], mx.array] | None = None,
    every: int = 1,
) -> tuple[mx.array, mx.array | None]:
    """`flow` for any number of steps in bounded memory, with a record of `observe(state)`.

    The record begins at the start and goes on every `every` steps. The graph is evaluated on the way, which
    mx.compile and mx.vmap refuse and mx.grad accepts.

    Shapes: returns the final state and the record [1 + steps // every, ...] (None without `observe`).
    Raises: as `flow`.
    """
    advance = _stepper(system, state.dtype, dt, steps, args, method, noise, key)
    record = [observe(state)] if observe else []
    for i in range(steps):
        state = advance(state, i)
        if observe and (i + 1) % every == 0:
            record.append(observe(state))
        if (i + 1) % EVALUATE_EVERY == 0:
            mx.eval(state, record[-EVALUATE_EVERY:])
    mx.eval(state, record)
    return state, mx.stack(record) if record else None
