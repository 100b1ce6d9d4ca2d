"""C40 and C26: steps and populations that break one law each, and those that keep them."""

from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.oscillators.physics import package_step
from kssm_mlx.models.grafts import phase_cores
from kssm_mlx.models.grafts.configs import configure
from kssm_mlx.models.grafts.graft import graft
from kssm_mlx.oscillators.integrate import METHODS
from kssm_mlx.oscillators.order import mean_phase
from tests.support import fakes
from tests.support.exported import tiny
from tests.support.small_oscillators import small

euler = partial(package_step, "euler")
pytestmark = pytest.mark.usefixtures("uncompiled")


def repelling(theta, omega, K, dt):
    """The sine of theta_i - theta_j, as in PhaseGPT."""
    return euler(theta, omega, -K, dt)


def clipped(theta, omega, K, dt):
    """A clip at two turns, as in PhaseBlock."""
    return mx.clip(euler(theta, omega, K, dt), -2 * np.pi, 2 * np.pi)


def linearly_mixed(theta, omega, K, dt):
    """A mean angle and phases mixed as numbers, as the forced R of v1."""
    share = 0.5 * K * dt
    return (1 - share) * (theta + omega * dt) + share * mean_phase(theta)[:, None]


def without_dt(theta, omega, K, dt):
    """The frequencies are added once per step, whatever a step is."""
    return euler(theta + omega * 0.05, 0 * omega, K, dt)


def scattering(theta, omega, K, dt):
    """Equal phases do not stay equal."""
    return euler(theta, omega + 1e-3 * mx.arange(theta.shape[-1]), K, dt)


def check(id: str, model, seed: int = 0):
    (found,) = suite.run_suite(Context(model, seed=seed), [id])
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_package_keeps_every_law(method, seed):
    found = check("C40", SimpleNamespace(oscillator_step=partial(package_step, method)), seed)
    assert found.verdict == "pass", found.got


def test_a_model_without_phases_is_not_measured():
    for model in (fakes.TinyRecurrent(), small("kssm", 8), grafted(core="carried")):
        found = check("C40", model)
        assert found.verdict == "not measurable" and "the model has no oscillator_step" in found.got


@pytest.mark.parametrize("family", ["kssm_v1", "kssm_v2", "kssm_v3"])
def test_banks_keep_every_law(family):
    found = check("C40", small(family, 8))
    assert found.verdict == "pass", found.got


@pytest.mark.parametrize(
    "options",
    [
        {"core": "phase_block"},
        {"core": "hook"},
        {"core": "hook", "legacy": True},
        {"core": "logits"},
        {"core": "logits", "legacy": True},
    ],
)
def test_phase_cores_keep_every_law(options):
    found = check("C40", grafted(**options))
    assert found.verdict == "pass", found.got


def test_the_phase_block_as_published_gets_stuck():
    found = check("C40", grafted(core="phase_block", legacy=True))
    assert (found.verdict, found.numbers["broken"]) == ("fail", ["turn"])
    assert found.fix == "a turning phase gets stuck: wrap angles, never clip them"


@pytest.mark.parametrize("core", ["phase_block", "hook"])
def test_what_is_measured_is_what_the_core_does(core, monkeypatch):
    """One defect in the step, and both the check and the phases of the model see it."""
    model, tokens = grafted(core=core), mx.zeros((1, 3), mx.int32)
    before = model.forward(tokens).trace
    monkeypatch.setattr(phase_cores, "wrap_phases", lambda theta: mx.clip(theta, -0.5, 0.5))
    after = model.forward(tokens).trace
    (name,) = (n for n in before if n.endswith("/theta"))
    assert mx.abs(after[name]).max().item() <= 0.5 and not mx.array_equal(before[name], after[name])
    assert "turn" in check("C40", model).numbers["broken"]


def grafted(**options):
    return graft(tiny("mamba"), configure(options))


@pytest.mark.parametrize(
    "step, law, fix",
    [
        (repelling, "rise", "the coupling has the wrong sign"),
        (clipped, "turn", "wrap angles, never clip them"),
        (linearly_mixed, "shift", "angles are mixed linearly"),
        (without_dt, "halving", "depends on dt"),
        (scattering, "unity", "phases in lock-step drift apart"),
        (lambda theta, omega, K, dt: theta * float("nan"), "turn", "wrap angles"),
    ],
)
def test_a_step_that_breaks_a_law_is_caught(step, law, fix):
    found = check("C40", SimpleNamespace(oscillator_step=step))
    assert found.verdict == "fail"
    assert law in found.numbers["broken"] and fix in found.fix


@pytest.mark.parametrize("step, own", [(clipped, {"turn"}), (without_dt, {"halving", "turn"})])
def test_each_defect_breaks_its_own_laws_only(step, own):
    assert set(check("C40", SimpleNamespace(oscillator_step=step)).numbers["broken"]) == own


class Populations(fakes.TinyRecurrent):
    """Populations whose states follow `velocity(z)` without input. Shapes: z complex [n, G]."""

    def __init__(self, velocity, groups: int = 3):
        super().__init__()
        self.args = SimpleNamespace(vocab_size=8, triadic=(1.0, 8.0))
        self._velocity, self._groups = velocity, groups

    def forward(self, tokens, *args, **more):
        trace = {f"block{b:02d}/R": mx.zeros((*tokens.shape, self._groups)) for b in range(2)}
        return super().forward(tokens)._replace(trace=trace)

    def free_states(self, block, steps, z0):
        z = np.array(z0[:, 0]) + 1j * np.array(z0[:, 1])
        for _ in range(steps):
            z = z + 0.1 * self._velocity(z)
        return mx.array(np.stack([z.real, z.imag], axis=1), mx.float32)


def two_phases(z):
    """Attracted to +0.7 and -0.7: a double well of the phase."""
    return z.real * (0.49 - z.real**2) - 1j * z.imag


def two_amplitudes(z):
    """Incoherence and R = 0.8 are both stable, R = 0.4 between them is not; the phase turns on."""
    R2 = np.abs(z) ** 2
    return -10 * z * (R2 - 0.16) * (R2 - 0.64) + 0.3j * z


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("velocity", [two_phases, two_amplitudes])
def test_two_states_are_found(velocity, seed):
    found = check("C26", Populations(velocity), seed)
    assert found.verdict == "pass", found.got
    assert "100% of the populations" in found.got


@pytest.mark.parametrize(
    "velocity, got",
    [
        (lambda z: 0.5 - z, "0.00 apart"),  # one attractor
        (lambda z: 0 * z, "91% in neither"),  # a state that stays wherever it is put
        (lambda z: np.where(z.real > 0, 0.7, 0) - z, "0.70 apart"),  # 0 is left to one side
    ],
)
def test_what_is_not_bistable_loses_the_name(velocity, got):
    found = check("C26", Populations(velocity))
    assert found.verdict == "fail"
    assert "0% of the populations" in found.got and got in found.got and "do not call it" in found.fix


def test_populations_that_nobody_counts_are_not_measurable():
    """No KeyError of a trace without R."""

    class Uncounted(Populations):
        def forward(self, tokens, *args, **more):
            return fakes.TinyRecurrent.forward(self, tokens)

    found = check("C26", Uncounted(two_phases))
    assert found.verdict == "not measurable" and 'the trace has no "block00/R"' in found.got


@pytest.mark.parametrize("seed", range(5))
def test_triadic_populations_are_bistable_inside_their_window(seed):
    def model(K1: float, K2: float):
        return small("kssm", 8, seed, triadic=(K1, K2), n_groups=4, n_layers=1, memory=8)

    assert check("C26", model(1.0, 8.0), seed).verdict == "pass"
    if seed == 0:
        assert check("C26", model(3.0, 0.0)).verdict == "fail"


def test_v3_is_not_bistable_and_others_are_not_asked():
    found = check("C26", small("kssm_v3", 8))
    assert found.verdict == "fail" and "no state is carried from token to token" in found.got
    for other in (small("kssm", 8), small("kssm_v3", 8, variant="monostable"), fakes.TinyRecurrent()):
        assert check("C26", other).got == "the model does not claim two states"


def test_wells_hold_what_is_in_them_unless_they_are_blunt():
    def model(sharpness: float):
        return small("kssm", 8, dimension=3, wells=6, n_groups=4, n_layers=2, sharpness=sharpness)

    sharp = check("C26", model(60.0))
    assert sharp.verdict == "pass" and sharp.got.startswith("of 6 wells ")
    assert all(max(held) >= 4 for held in sharp.numbers["held"].values())
    blunt = check("C26", model(1.0))
    assert blunt.verdict == "fail" and "too blunt to tell states apart: raise model.sharpness" in blunt.fix
    assert blunt.got.startswith("of 6 wells 1.0 hold a population")
