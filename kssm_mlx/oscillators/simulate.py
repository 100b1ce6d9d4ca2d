"""One experiment with oscillators, from numbers to R against theory: what `kssm simulate` runs.

Every coupling of a sweep, from every start, is a row of one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.oscillators.cases import CASES, Case
from kssm_mlx.oscillators.frequencies import Frequencies
from kssm_mlx.oscillators.integrate import integrate, method_for
from kssm_mlx.oscillators.kuramoto import Inertial, axial_rotation
from kssm_mlx.oscillators.order import coherence, vector_coherence

RECORDS = 400  # points of R(t) that are kept
TAIL = 0.25  # the share of the time, at its end, over which R is averaged
# dt / mass from which x' = -x / mass explodes: the end of the method's stability region on the real axis.
STABLE = {"euler": 2.0, "heun": 2.0, "rk4": 2.785}
LARGEST = 1 << 28  # oscillators times rows: 1 GiB a phase, which several copies of make too much for a laptop
LONGEST = 10_000_000  # steps, a day or so of the fastest machine
OWN = ("lag", "noise", "K2", "mass")  # options that only some models read


@dataclass(frozen=True)
class Setup:
    """What to simulate, complete; `prepare` builds it. Raises: ConfigError for what cannot be simulated."""

    model: str
    K: tuple[float, ...] = (2.0,)
    n: int = 2000
    distribution: str = "lorentzian"
    width: float = 0.5
    lag: float = 0.0
    noise: float = 0.0
    K2: float = 0.0
    mass: float = 1.0
    time: float = 60.0
    dt: float = 0.05
    seed: int = 0
    method: str = "rk4"

    def __post_init__(self):
        rules = {
            "K": (bool(self.K) and all(map(math.isfinite, self.K)), "finite numbers"),
            "n": (self.n >= 2, "at least 2 oscillators"),
            "lag": (math.isfinite(self.lag), "a finite angle in radians"),
            "noise": (0 <= self.noise < math.inf, "0 or a positive number"),
            "K2": (math.isfinite(self.K2), "a finite number"),
            "mass": (0 < self.mass < math.inf, "a positive number"),
            "time": (0 < self.time < math.inf, "a positive number"),
            "dt": (0 < self.dt <= self.time, f"positive and at most the time {self.time:g}"),
            "seed": (0 <= self.seed < 2**63, "between 0 and 2^63 - 1"),
            "distribution": (
                self.distribution in self.case.distributions,
                " or ".join(self.case.distributions),
            ),
        }
        for name, (ok, expected) in rules.items():
            if not ok:
                raise ConfigError(
                    f"{name} must be {expected} in model {self.model!r}, got {getattr(self, name)!r}"
                )
        self._refuse_too_large()
        method_for(self.case.system, self.method)
        self._refuse_unstable()
        _ = self.frequencies

    def _refuse_too_large(self) -> None:
        rows = len(self.K) * len(self.case.starts)
        if self.n * rows > LARGEST:
            raise ConfigError(
                f"{self.n:,} oscillators at {rows} couplings and starts are more than {LARGEST:,}; "
                f"take --n {LARGEST // rows}"
            )
        if self.time / self.dt > LONGEST:
            raise ConfigError(
                f"time {self.time:g} in steps of {self.dt:g} is more than {LONGEST:,} steps; take less time"
            )

    def _refuse_unstable(self) -> None:
        """Raises: ConfigError for a step at which the friction of an inertial oscillator explodes."""
        limit = STABLE.get(self.method)
        if not isinstance(self.case.system, Inertial) or limit is None or self.dt < limit * self.mass:
            return
        raise ConfigError(
            f"dt {self.dt:g} is unstable for mass {self.mass:g} with {self.method}, which needs dt < "
            f"{limit:g} mass; take --dt {0.5 * limit * self.mass:.2g}"
        )

    @property
    def case(self) -> Case:
        return CASES[self.model]

    @property
    def frequencies(self) -> Frequencies:
        return Frequencies(self.distribution, self.width)


def prepare(model: str = "mean-field", **options: Any) -> Setup:
    """A complete `Setup`: options that are None take the model's own default.

    Raises: ConfigError for an unknown model, an option the model does not read, or an unusable value.
    """
    if model not in CASES:
        raise ConfigError(
            f"model {model!r} is unknown{nearest(model, CASES)}; the models are {', '.join(CASES)}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    for name in OWN:
        if name in given and name not in CASES[model].defaults:
            readers = " or ".join(other for other, case in CASES.items() if name in case.defaults)
            raise ConfigError(f"model {model!r} does not read {name}; drop it or use model {readers}")
    return Setup(model=model, **{**CASES[model].defaults, **given})


def model_of(model: str, dimension: int | None) -> str:
    """The model in so many dimensions: the mean field of unit vectors in three is `sphere`.

    Raises: ConfigError for a dimension or a model that there is not.
    """
    has = 3 if model == "sphere" else 2
    if dimension in (None, has):
        return model
    if (model, dimension) == ("mean-field", 3):
        return "sphere"
    raise ConfigError(
        f"--dimension {dimension} of model {model!r}; there are 2 for the models of phases, and 3 for "
        "mean-field, which is then sphere"
    )


def parse_couplings(text: str) -> tuple[float, ...]:
    """ "2" is one coupling, "0:4:17" is 17 of them from 0 to 4. Raises: ConfigError for anything else."""
    parts = text.split(":")
    try:
        if len(parts) == 1:
            return (float(text),)
        first, last, count = float(parts[0]), float(parts[1]), int(parts[2])
        if len(parts) == 3 and 2 <= count <= 1000:
            return tuple(np.linspace(first, last, count).tolist())
    except (ValueError, IndexError):
        pass
    raise ConfigError(
        f"K must be a number or FIRST:LAST:COUNT such as 0:4:17 (2 to 1000 of them), got {text!r}"
    )


class Row(NamedTuple):
    """One run: its coupling and start, R over the last quarter of the time (mean, deviation), and theory."""

    K: float
    start: str
    R: float
    deviation: float
    theory: float

    def cells(self) -> tuple[str, ...]:
        """The row as text, for a table."""
        measured = (f"{self.K:.4g}", self.start, f"{self.R:.4f}", f"{self.deviation:.4f}")
        if math.isnan(self.theory):
            return (*measured, "no closed form", "")
        return (*measured, f"{self.theory:.4f}", f"{self.R - self.theory:+.4f}")


class Simulation(NamedTuple):
    """What came out, in numpy.

    Shapes: time [T], R [T, rows], phases [rows, N] (radians, final; unit vectors [rows, N, 3] on the sphere),
    omega [N] (rotation vectors [N, 3] on the sphere).
    """

    setup: Setup
    rows: list[Row]
    time: np.ndarray
    R: np.ndarray
    phases: np.ndarray
    omega: np.ndarray

    @property
    def thresholds(self) -> dict[str, float]:
        """Named critical couplings, where they are known."""
        return self.setup.case.thresholds(self.setup)

    def curves(self, K: np.ndarray) -> dict[str, np.ndarray]:
        """R in theory at each K, by branch; NaN where there is no closed form or no such state."""
        points = [self.setup.case.steady(self.setup, float(k)) for k in K]
        return {branch: np.array([p[branch] for p in points]) for branch in points[0]}


def _begin(setup: Setup) -> tuple[mx.array, mx.array, mx.array]:
    """(state, omega, K) of all rows. Shapes: [rows, N] (or [2, rows, N], [rows, N, 3]), [N], [rows, 1]."""
    starts, system = setup.case.starts, setup.case.system
    first, second = mx.random.split(mx.random.key(setup.seed))
    # One draw for all rows: couplings and starts are compared on the same oscillators.
    K = mx.array([k for k in setup.K for _ in starts])[:, None]
    # From one pole: without a field nothing would choose a direction.
    if setup.model == "sphere":
        x = mx.broadcast_to(mx.array([0.0, 0.0, 1.0]), (len(K), setup.n, 3))
        return x, setup.width * mx.random.normal((setup.n, 3), key=second), K
    scattered = mx.random.uniform(-math.pi, math.pi, (setup.n,), key=first)
    theta = mx.stack([scattered if start == "random" else mx.zeros_like(scattered) for start in starts])
    theta = mx.tile(theta, (len(setup.K), 1))
    # Quantiles, not draws: a mean field of so many samples would be off by its own noise.
    omega = mx.array(setup.frequencies.quantiles(setup.n), dtype=mx.float32)
    if isinstance(system, Inertial):
        return mx.stack([theta, mx.broadcast_to(omega, theta.shape)]), omega, K
    return theta, omega, K


def simulate(setup: Setup) -> Simulation:
    """Run every coupling of the setup and measure R at the end. Deterministic given the seed."""
    state, omega, K = _begin(setup)
    steps = round(setup.time / setup.dt)
    every = max(1, steps // RECORDS)
    on_sphere, inertial = setup.model == "sphere", isinstance(setup.case.system, Inertial)
    observe = vector_coherence if on_sphere else (lambda s: coherence(s[0])) if inertial else coherence
    args = (axial_rotation(omega) if on_sphere else omega, *setup.case.arguments(setup, K))
    noise = {"noise": setup.noise, "key": mx.random.key(setup.seed + 1)} if setup.noise else {}
    state, record = integrate(
        setup.case.system,
        state,
        setup.dt,
        steps,
        args,
        method=setup.method,
        observe=observe,
        every=every,
        **noise,
    )
    R = np.array(record)
    if not np.isfinite(R).all():
        raise ConfigError(
            f"R is not finite: dt {setup.dt:g} is too long a step; take --dt {setup.dt / 4:.2g}"
        )
    return Simulation(
        setup=setup,
        rows=_measure(setup, R),
        time=np.arange(len(R)) * every * setup.dt,
        R=R,
        phases=np.array(state[0] if inertial else state),
        omega=np.array(omega),
    )


def _measure(setup: Setup, R: np.ndarray) -> list[Row]:
    tail = R[-max(1, round(len(R) * TAIL)) :]
    labels = [(k, start) for k in setup.K for start in setup.case.starts]
    return [
        Row(k, start, float(mean), float(deviation), setup.case.steady(setup, k)[start])
        for (k, start), mean, deviation in zip(labels, tail.mean(axis=0), tail.std(axis=0), strict=True)
    ]
