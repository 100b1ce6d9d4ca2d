"""C27, C28 and C12 on real grafts: controllers that act, aims that agree, cores that begin as nothing."""

import mlx.core as mx
import pytest

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.models.grafts.configs import configure
from kssm_mlx.models.grafts.graft import graft
from kssm_mlx.training.recipe import Recipe, parse
from tests.support.controlled_model import ControlledModel
from tests.support.exported import tiny
from tests.support.small_oscillators import small

pytestmark = pytest.mark.usefixtures("uncompiled")
DRIFT = {"rule": "drift", "boost": 0.05}


class Controlled(ControlledModel):
    """Coupled so weakly that one step of size 1 does not overshoot, however much it is raised."""

    def __init__(self, seed: int = 0):
        super().__init__(seed=seed)
        self.core.K = mx.array(0.5)


class Deaf(Controlled):
    """Knobs that nothing reads."""

    def forward(self, tokens, *args, **more):
        self.core.K, self.core.sigma = mx.array(1.0), mx.array(0.3)
        return super().forward(tokens, *args, **more)


class Backwards(Controlled):
    """More coupling, less order."""

    def forward(self, tokens, *args, **more):
        self.core.K = 2 - self.core.K
        return super().forward(tokens, *args, **more)


def run(id: str, model, recipe: Recipe, seed: int = 0):
    args = getattr(model, "args", None)
    (check,) = suite.run_suite(Context(model, args, recipe, seed=seed), [id])
    return check


def recipe(control: dict | None = None, monitor: dict | None = None, **loss) -> Recipe:
    sections = {"control": control, "monitor": monitor}
    given = {name: section for name, section in sections.items() if section is not None}
    return parse({"train": {"context": 32}, "loss": loss, **given})


@pytest.mark.parametrize("seed", range(5))
def test_a_controller_that_acts_passes(seed):
    check = run("C27", Controlled(seed), recipe(DRIFT), seed)
    assert check.verdict == "pass", check.got


@pytest.mark.parametrize(
    "kind, control, got, fix",
    [
        (
            ControlledModel,
            {"rule": "hook", "label_only": True},
            "BOOST moves R by +0.000 (not kept)",
            "start",
        ),
        (Controlled, {**DRIFT, "persist": False}, "(not kept)", "set control.persist = true"),
        (Deaf, DRIFT, "ESCAPE moves R by +0.000", "does not reach R"),
        (Backwards, DRIFT, "ESCAPE moves R by -", "the right way round"),
    ],
)
def test_a_controller_in_name_only_is_caught(kind, control, got, fix):
    check = run("C27", kind(), recipe(control))
    assert check.verdict == "fail"
    assert got in check.got and fix in check.fix


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", ["drift", "dual", "hook"])
def test_a_controlled_kssm_passes(rule, seed):
    check = run("C27", small("kssm", 8, seed, controlled=True), recipe({"rule": rule}), seed)
    assert check.verdict == "pass", check.got


@pytest.mark.parametrize("core", ["hook", "carried"])
def test_knobs_of_grafts_act(core):
    check = run("C27", grafted({"core": core}), recipe({"rule": "drift", "boost": 0.1}))
    assert check.verdict == "pass", check.got


@pytest.mark.parametrize(
    "made",
    [
        recipe(DRIFT, {"target": "drift"}, uncertainty={"weight": 0.1}),
        recipe({"rule": "dual"}, {"target": "notes", "profile": "B"}, tonal={"weight": 0.5, "limit": 0.95}),
        recipe(None, {"target": "paper", "product": [0.2, 0.3]}, coherence={"weight": 1.0, "kind": "center"}),
        recipe(None, {"target": "v3", "profile": "D"}, presence={"weight": 0.05}),
        recipe({"rule": "hook", "R": [0.4, 0.6]}, {"target": "v3"}),
    ],
)
def test_aims_that_agree_pass(made):
    assert run("C28", None, made).verdict == "pass"


@pytest.mark.parametrize(
    "made, got",
    [
        (
            recipe(DRIFT, {"target": "notes"}),
            "control (drift) wants R in 0.3-0.55, the target 'notes' in 0.8-0.95",
        ),
        (recipe({"rule": "dual"}), "control (dual) wants R in 0.8-0.95, the target 'v3' in 0.3-0.5"),
        (recipe(None, {"target": "notes", "profile": "A"}), "profile A calls the target 'notes' 'over-sync'"),
        (recipe(None, {"target": "notes"}, tonal={"weight": 0.5}), "loss.tonal wants R in 0-0.8"),
        (recipe(None, {"target": "notes"}, coherence={"weight": 0.1}), "loss.coherence wants R in 0.35-0.55"),
        (
            recipe(None, {"target": "paper"}, uncertainty={"weight": 0.1, "target": 0.9}),
            "loss.uncertainty wants U in 0.9-0.9",
        ),
    ],
)
def test_aims_against_each_other_are_caught(made, got):
    check = run("C28", None, made)
    assert check.verdict == "fail"
    assert got in check.got and "name the same zone" in check.fix


def test_the_box_of_the_paper_is_impossible():
    monitor = recipe(None, {"target": "paper"}).monitor.model_copy(update={"product": (0.4, 0.6)})
    check = run("C28", None, recipe().model_copy(update={"monitor": monitor}))
    assert check.verdict == "fail" and "R U in 0.4-0.6 is impossible in the target 'paper'" in check.got


def test_without_aims_and_controllers_nothing_is_asked():
    assert run("C28", None, recipe()).got == "the recipe has neither [monitor] nor [control]"
    assert run("C27", Controlled(), recipe()).got == "the recipe has no [control]"


def grafted(options: dict, seed: int = 0):
    base_model = tiny("mamba")
    base_model.freeze()
    return graft(base_model, configure(options), seed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("core", ["phase_block", "hook", "carried"])
def test_a_repaired_graft_is_neutral(core, seed):
    assert run("C12", grafted({"core": core}, seed), recipe(), seed).verdict == "pass"


def test_the_published_phase_block_is_not():
    check = run("C12", grafted({"core": "phase_block", "legacy": True}), recipe())
    assert check.verdict == "fail" and "start the graft as the identity" in check.fix
