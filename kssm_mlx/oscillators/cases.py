"""The models that `simulate` knows, as one table: the system, its options, and the closed forms that
describe it.

A `Case` answers for the steady state. `steady(setup, K)` gives R by the start that leads to it: "random"
phases or "aligned" ones (they differ where two states coexist), and "unstable" for the state between them.
NaN says that no closed form is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from kssm_mlx.oscillators import kuramoto, theory
from kssm_mlx.oscillators.frequencies import FAMILIES, Frequencies
from kssm_mlx.oscillators.integrate import System

NAN = float("nan")


class Parameters(Protocol):
    """What a case reads of the experiment: the fields of `simulate.Setup`, which stands above."""

    @property
    def distribution(self) -> str: ...
    @property
    def width(self) -> float: ...
    @property
    def lag(self) -> float: ...
    @property
    def noise(self) -> float: ...
    @property
    def K2(self) -> float: ...
    @property
    def mass(self) -> float: ...
    @property
    def frequencies(self) -> Frequencies: ...


class Case(NamedTuple):
    """One model. `arguments(setup, K)` follow (state, omega); `defaults` name the options it reads."""

    system: System
    arguments: Callable[[Parameters, mx.array], tuple]
    steady: Callable[[Parameters, float], dict[str, float]]
    thresholds: Callable[[Parameters], dict[str, float]]
    defaults: dict[str, Any]
    starts: tuple[str, ...] = ("random",)
    distributions: tuple[str, ...] = tuple(FAMILIES)


def _mean_field(setup: Parameters, K: float) -> dict[str, float]:
    form = {"lorentzian": theory.lorentzian, "gaussian": theory.gaussian, "uniform": theory.uniform}
    if setup.distribution == "identical":
        return {"random": float(K > 0)}
    return {"random": form[setup.distribution](K, setup.width)}


def _sakaguchi(setup: Parameters, K: float) -> dict[str, float]:
    gamma = {"lorentzian": setup.width, "identical": 0.0}.get(setup.distribution)
    return {"random": NAN if gamma is None else theory.sakaguchi(K, setup.lag, gamma)[0]}


def _sakaguchi_thresholds(setup: Parameters) -> dict[str, float]:
    known = setup.distribution in ("lorentzian", "identical") and np.cos(setup.lag) > 0
    return {"K_c": setup.frequencies.critical_coupling / float(np.cos(setup.lag))} if known else {}


def _triadic(setup: Parameters, K: float) -> dict[str, float]:
    if setup.distribution != "lorentzian":
        return dict.fromkeys(("random", "aligned", "unstable"), NAN)
    stable, unstable = theory.triadic(K, setup.K2, setup.width)
    coherent = 0.0 if np.isnan(stable) else stable
    return {
        "random": 0.0 if 2 * setup.width > K else coherent,
        "aligned": coherent,
        "unstable": unstable,
    }


def _triadic_thresholds(setup: Parameters) -> dict[str, float]:
    if setup.distribution != "lorentzian" or 2 * setup.width > setup.K2:
        return {"K_c": setup.frequencies.critical_coupling}
    return {
        "K_c": 2 * setup.width,
        "saddle-node": theory.triadic_saddle_node(setup.K2, setup.width),
    }


def _measure_noisy(setup: Parameters, K: float) -> dict[str, float]:
    if setup.distribution != "identical" or setup.noise == 0:
        return {"random": NAN} if setup.noise else _mean_field(setup, K)
    return {"random": theory.noisy(K, setup.noise)}


def _noisy_thresholds(setup: Parameters) -> dict[str, float]:
    if setup.distribution == "identical":
        return {"K_c": 2 * setup.noise}
    if setup.distribution == "lorentzian":
        return {"K_c": 2 * (setup.width + setup.noise)}
    return {} if setup.noise else {"K_c": setup.frequencies.critical_coupling}


def _inertial(setup: Parameters, K: float) -> dict[str, float]:
    return {"random": float(K > 0) if setup.distribution == "identical" else NAN}


def _critical(setup: Parameters) -> dict[str, float]:
    return {"K_c": setup.frequencies.critical_coupling}


CASES: dict[str, Case] = {
    "mean-field": Case(
        kuramoto.Phases(kuramoto.mean_field), lambda setup, K: (K,), _mean_field, _critical, {}
    ),
    "sakaguchi": Case(
        kuramoto.Phases(kuramoto.sakaguchi),
        lambda setup, K: (K, setup.lag),
        _sakaguchi,
        _sakaguchi_thresholds,
        {"lag": 0.6, "K": (3.0,)},
    ),
    "triadic": Case(
        kuramoto.Phases(kuramoto.triadic),
        lambda setup, K: (K, setup.K2),
        _triadic,
        _triadic_thresholds,
        {"K2": 8.0, "K": (1.0,), "width": 1.0},
        starts=("random", "aligned"),
    ),
    "noisy": Case(
        kuramoto.Phases(kuramoto.mean_field),
        lambda setup, K: (K,),
        _measure_noisy,
        _noisy_thresholds,
        {"noise": 0.5, "distribution": "identical", "method": "euler", "dt": 0.02},
    ),
    "inertial": Case(
        kuramoto.Inertial(kuramoto.mean_field),
        lambda setup, K: (setup.mass, K),
        _inertial,
        lambda setup: {},
        {"mass": 1.0, "distribution": "identical"},
    ),
    "sphere": Case(
        kuramoto.sphere,
        lambda setup, K: (K[..., None],),
        lambda setup, K: {"aligned": theory.sphere(K, setup.width) if K > 0 else 0.0},
        lambda setup: {},
        {"distribution": "gaussian", "width": 1.0, "K": (1.0,)},
        starts=("aligned",),  # out of random vectors R grows at a rate near K / 3, slow where the jump is
        distributions=("gaussian",),
    ),
}
