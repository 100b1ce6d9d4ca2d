"""C20 to C23 and C12: what R does and knows, on trained models, their broken twins and the precursors."""

from dataclasses import replace

import mlx.core as mx
import pytest

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.models.base import Clamp, Intervention
from kssm_mlx.models.kssm import KSSM
from tests.support import fakes
from tests.support.small_oscillators import on_its_floor, small, trained

IDS = ("C20", "C21", "C22", "C23")
pytestmark = pytest.mark.usefixtures("uncompiled")


class IgnoresClamps(KSSM):
    """Clamps work in training mode only, like the hook that was out of the way in evaluation."""

    def hidden(self, tokens, cache=None, intervention=None, **more):
        return super().hidden(tokens, cache, intervention if self.training else None, **more)


class WrongQuantity(KSSM):
    """What is asked of R is done to psi, as the script that scaled features 0 to 2 and not feature 64."""

    def hidden(self, tokens, cache=None, intervention=None, **more):
        if intervention:
            clamps = tuple(replace(c, site="psi" if c.site == "R" else c.site) for c in intervention.clamps)
            intervention = replace(intervention, clamps=clamps)
        return super().hidden(tokens, cache, intervention, **more)


class Loud(KSSM):
    """Noise in evaluation that nobody hears the clamp through."""

    stochastic = True

    def forward(self, tokens, cache=None, intervention=None, *, key=None, **more):
        out = super().forward(tokens, cache, intervention, **more)
        return out._replace(logits=out.logits + 10 * mx.random.normal(out.logits.shape, key=key))

    def hidden(self, *args, key=None, **more):
        return super().hidden(*args, **more)


class SameForAll(KSSM):
    """R is written into the trace as a constant."""

    def hidden(self, *args, **more):
        hidden, cache, trace = super().hidden(*args, **more)
        return hidden, cache, {n: 0 * a + 0.3 if n.endswith("/R") else a for n, a in trace.items()}


class Jittery(KSSM):
    """R in the trace is noise."""

    def hidden(self, *args, **more):
        hidden, cache, trace = super().hidden(*args, **more)
        noise = {n: mx.random.uniform(shape=a.shape) for n, a in trace.items() if n.endswith("/R")}
        return hidden, cache, {**trace, **noise}


def run(id: str, context: Context):
    (check,) = suite.run_suite(context, [id])
    return check


@pytest.fixture(scope="module")
def run_of_kssm(prepared):
    return trained(prepared)


def as_kind(context: Context, kind: type) -> Context:
    """The same trained weights in a model of another class."""
    model = small("kssm", context.data.vocab_size)
    model.update(context.model.parameters())
    model.__class__ = kind
    return replace(context, model=model)


@pytest.mark.parametrize("seed", range(5))
def test_a_trained_kssm_passes(prepared, seed):
    checks = suite.run_suite(trained(prepared, seed=seed), (*IDS, "C9"))
    assert [(c.id, c.got) for c in checks if c.verdict != "pass"] == []


@pytest.mark.parametrize(
    "id, kind, got, fix",
    [
        ("C20", IgnoresClamps, "KL 0.0e+00", "R does not reach the logits"),
        ("C20", WrongQuantity, "R missed by", "the clamp does not hold R"),
        (
            "C21",
            IgnoresClamps,
            "treatment not applied: the logits are equal with and without R, psi",
            "",
        ),
        ("C20", Loud, "noise 1", "drowns in the model's own noise"),
        ("C22", SameForAll, "variance over texts 0 x noise", "the same whatever is read"),
        ("C22", Jittery, "x noise (block", "the same whatever is read"),
    ],
)
def test_a_broken_intervention_is_caught(run_of_kssm, id, kind, got, fix):
    check = run(id, as_kind(run_of_kssm, kind))
    assert check.verdict == "fail"
    assert got in check.got and fix in check.fix


def test_a_clamp_on_tokens_that_never_come_is_no_treatment(run_of_kssm):
    late, now = (Intervention((Clamp("R", 0.5, start=start),)) for start in (1000, 0))
    check = run("C21", replace(run_of_kssm, interventions={"late": late, "now": now}))
    assert check.verdict == "fail" and check.got.endswith("with and without late")
    assert run("C21", replace(run_of_kssm, interventions={"now": now})).verdict == "pass"


@pytest.mark.parametrize("seed", range(5))
def test_random_weights_do_not_use_R(prepared, seed):
    """A clamp moves their logits as much as any push of its size: the model was disturbed, no more."""
    data, recipe = prepared
    model = small("kssm", data.vocab_size, seed)
    model.head.weight = 30 * model.head.weight  # as loud as a trained one
    context = Context(model, model.args, recipe, data, untrained=True, seed=seed)
    numbers = run("C20", context).numbers
    assert 0.5 < numbers["nats"] / numbers["placebo"] < 2
    assert "untrained" in run("C20", replace(context, untrained=False)).got


def test_v2_is_caught_by_what_R_does_and_v3_by_what_it_knows(prepared):
    v2 = trained(prepared, "kssm_v2")
    assert run("C21", v2).verdict == "pass"  # the last digit does move
    check = run("C20", v2)
    assert check.verdict == "fail" and "a norm takes it out" in check.fix
    v3 = on_its_floor(small("kssm_v3", 40))
    alike, blind = (run(id, Context(v3, v3.args, untrained=True)) for id in ("C23", "C22"))
    assert alike.verdict == "fail" and "0.0 dimensions" in alike.got and "the same drive" in alike.fix
    assert blind.verdict == "fail" and "a common shift" in blind.fix


def test_a_common_shift_is_one_dimension():
    model = small("kssm_v3", 40)
    for block in model.blocks:
        block.bank_norm.weight = mx.linspace(0, 2, 32)  # now the mean of z depends on the token
    check = run("C23", Context(model, model.args))
    assert check.verdict == "fail" and "1.0 dimensions" in check.got


def test_phases_that_lock_only_warn():
    class Locked(KSSM):
        """Half of a trace's phases follow the first, half the second."""

        def hidden(self, *args, **more):
            hidden, cache, trace = super().hidden(*args, **more)
            locked = {n: mx.tile(a[..., :2], (1, 1, 12)) for n, a in trace.items() if n.endswith("/psi")}
            return hidden, cache, {**trace, **locked}

    model = small("kssm", 40)
    model.__class__ = Locked
    check = run("C23", Context(model, model.args))
    assert check.verdict == "warn" and "few directions together" in check.fix


def test_v1_knows_the_current_token_and_nothing_else(prepared):
    check = run("C22", trained(prepared, "kssm_v1"))
    assert check.verdict == "warn" and "the token explains 100.0%" in check.got
    assert "nothing is carried" in check.fix


@pytest.mark.parametrize("seed", range(5))
def test_fresh_oscillators_differ(seed):
    model = small("kssm", 40, seed)
    check = run("C23", Context(model, model.args, seed=seed))
    assert check.verdict == "pass" and "apart 1." in check.got


@pytest.mark.parametrize("id", IDS)
def test_nan_passes_nothing(run_of_kssm, id):
    class Damaged(KSSM):
        def hidden(self, *args, **more):
            hidden, cache, trace = super().hidden(*args, **more)
            damaged = {n: a * float("nan") if isinstance(a, mx.array) else a for n, a in trace.items()}
            return hidden * float("nan"), cache, damaged

    assert run(id, as_kind(run_of_kssm, Damaged)).verdict == "fail"


@pytest.mark.parametrize(
    "id, message",
    [
        ("C12", "the model is no graft"),
        ("C20", 'no clamp site "R"'),
        ("C22", 'no "block00/R"'),
        ("C23", 'no "block00/psi"'),
    ],
)
def test_without_oscillators_nothing_is_measured(id, message):
    model = fakes.TinyRecurrent()
    check = run(id, Context(model, model.args, untrained=True))
    assert check.verdict == "not measurable" and message in check.got


class Graft(fakes.TinyRecurrent):
    """A base model beside itself: what it says, times a factor."""

    def __init__(self, factor: float, seed: int = 0):
        super().__init__(seed=seed)
        self.host, self._factor = fakes.TinyRecurrent(seed=seed), factor

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = self.host.forward(tokens, cache, intervention)
        return out._replace(logits=self._factor * out.logits)


@pytest.mark.parametrize("seed", range(5))
def test_a_neutral_graft_passes(seed):
    model = Graft(1.01, seed)
    assert run("C12", Context(model, model.args, seed=seed)).verdict == "pass"


def test_a_graft_that_overrides_its_base_model_is_caught():
    model = Graft(4.0)
    check = run("C12", Context(model, model.args))
    assert check.verdict == "fail" and "start the graft as the identity" in check.fix
    later = run("C12", Context(model, model.args, history=[{"step": 7}]))
    assert (later.verdict, later.got) == ("not measurable", "the graft has had 7 updates")
