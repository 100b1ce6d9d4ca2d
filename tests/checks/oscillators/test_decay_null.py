"""C9, C24 and C25: what moves R without learning, and what cannot be learned because it rests on a clip."""

from dataclasses import replace

import mlx.core as mx
import pytest
from mlx.utils import tree_unflatten

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.oscillators.decay_null import decay_of
from kssm_mlx.data.batches import random_batch
from kssm_mlx.models.base import flatten
from kssm_mlx.training.optimizers.average import follow
from kssm_mlx.training.optimizers.updates import make_optimizer, update
from kssm_mlx.training.recipe import parse
from kssm_mlx.training.schedules import schedule
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from tests.support import fakes
from tests.support.small_oscillators import on_its_floor, small

BARRIER = {"bistability": {"weight": 0.5}}
pytestmark = pytest.mark.usefixtures("uncompiled")


def run(id: str, context: Context):
    (check,) = suite.run_suite(context, [id])
    return check


def recipe(steps: int = 4000, loss: dict | None = None, **train):
    return parse({"train": {"steps": steps, "context": 32, **train}, "loss": loss or {}})


def decayed(model, plan, steps: int, seed: int = 0) -> Context:
    """A run in which every gradient was zero, as AdamW would have done it, step by step."""
    state, optimizer = initial_state(model, plan.train), make_optimizer(model, plan.train)
    initial, params, opt, average = flatten(state.params), state.params, state.opt, state.average
    nothing = tree_unflatten([(n, mx.zeros_like(p)) for n, p in initial.items()])
    for step in range(steps):
        params, opt = update(optimizer, params, nothing, opt, schedule(plan.train)(mx.array(step)))
        if plan.train.ema is not None:
            average = follow(average, params, plan.train.ema, opt["count"])
        mx.eval(params, opt, average)
    model.update(average or params)
    return Context(model, model.args, plan, initial=initial, history=[{"step": steps}], seed=seed)


@pytest.mark.parametrize("ema, seed", [(None, 0), (None, 1), (None, 2), (0.9, 0)])
def test_the_climb_of_v3_is_decay(ema, seed):
    plan = recipe(60, learning_rate=0.25, decay="all", ema=ema)
    check = run("C9", decayed(small("kssm_v3", 40, seed, noise="off"), plan, 60, seed))
    assert check.verdict == "fail" and check.numbers["share"] == pytest.approx(1, abs=0.02)
    assert "by decay alone +" in check.got and 'train.decay = "matrices"' in check.fix
    assert "blocks.0.bank.omega" in check.numbers["shrinking"]


@pytest.mark.parametrize("decay, verdicts", [("all", {"fail"}), ("matrices", {"pass", "not measurable"})])
def test_with_real_gradients_it_is_decay_all_the_same(prepared, decay, verdicts):
    """R of v3 climbs by 0.9 with decay on everything, as published, and by some 0.01 without."""
    data, _ = prepared
    plan = recipe(100, learning_rate=0.01, weight_decay=2.0, decay=decay, batch_size=4)
    model = small("kssm_v3", data.vocab_size, noise="off")
    state, step = initial_state(model, plan.train), make_step(model, plan.train, compile=False)
    initial = flatten(state.params)
    for i in range(100):
        state, _ = step(state, mx.array(random_batch(data.train, 0, i, 4, 32).tokens), None)
        mx.eval(state)
    model.update(state.params)
    context = Context(model, model.args, plan, data, initial=initial, history=[{"step": 100}])
    assert run("C9", context).verdict in verdicts


def test_before_training_the_recipe_is_read():
    v3 = small("kssm_v3", 40)
    assert run("C9", Context(v3, v3.args, recipe())).verdict == "pass"
    check = run("C9", Context(v3, v3.args, recipe(decay="all")))
    assert check.verdict == "warn" and "omega" in str(check.numbers["shrinking"])
    model = small("kssm", 40)
    assert run("C9", Context(model, model.args, recipe())).verdict == "pass"
    assert run("C9", Context(model, model.args, recipe(decay="all", weight_decay=0.0))).verdict == "pass"


def test_groups_decay_at_their_own_rate():
    plan = recipe(groups={"oscillator": {"learning_rate": 0.5, "weight_decay": 0.4}})
    decays = decay_of(small("kssm", 40), plan.train)
    assert decays["blocks.0.mixer.populations.field.weight"] == pytest.approx(0.2)
    assert decays["blocks.0.mixer.populations.omega"] == 0


def test_a_coherence_that_stayed_is_not_judged():
    model = small("kssm", 40)
    context = Context(model, model.args, recipe(), initial=flatten(model.parameters()), history=[{"step": 9}])
    check = run("C9", context)
    assert check.verdict == "not measurable" and "nothing to explain" in check.got
    assert 'no "block00/R"' in run("C9", replace(context, model=fakes.TinyRecurrent())).got


@pytest.mark.parametrize("seed", range(5))
def test_a_fresh_v3_still_learns(seed):
    model = small("kssm_v3", 40, seed)
    context = Context(
        model, model.args, recipe(loss=BARRIER), history=[{"step": 1}], seed=seed, untrained=True
    )
    assert run("C24", context).ok
    assert run("C25", context).verdict == "pass"


def test_u_on_its_floor_is_caught():
    model = on_its_floor(small("kssm_v3", 40))
    context = Context(model, model.args, recipe(loss=BARRIER), history=[{"step": 1}], untrained=True)
    clip, wall = run("C24", context), run("C25", context)
    assert clip.verdict == "fail" and "100.0% on the floor" in clip.got and "0.0% trained" in clip.got
    assert wall.verdict == "fail" and "bistability.barrier is 1.15 and has a gradient of 0.0e+00" in wall.got
    control = on_its_floor(small("kssm_v3", 40, variant="monostable"))
    assert run("C24", replace(context, model=control)).verdict == "pass"  # u_raw = 0 there is no clip


@pytest.mark.parametrize("term, dead", [("legacy_uncertainty", True), ("uncertainty", False)])
def test_a_term_that_is_a_number_is_caught(term, dead):
    model = small("kssm", 40)
    check = run("C25", Context(model, model.args, recipe(loss={term: {"weight": 0.1}})))
    assert (check.verdict == "fail") == dead
    assert not dead or "legacy_uncertainty is" in check.got


def test_an_inactive_barrier_is_not_judged():
    model = small("kssm", 40)
    inactive = {"tonal": {"weight": 1.0, "limit": 0.99}}  # R is below it, and R itself has a gradient
    assert run("C25", Context(model, model.args, recipe(loss=inactive))).verdict == "pass"
    assert run("C25", Context(model, model.args, recipe())).got == "the recipe adds no term to the loss"
    assert "nothing is clipped" in run("C24", Context(model, model.args, untrained=True)).got


class Clipping(fakes.TinyRecurrent):
    """Its u_raw is `given`, which it clips to [0, 1], or leaves where it is not a number."""

    def __init__(self, given):
        super().__init__()
        self._given = mx.array(given)

    def forward(self, tokens, *args, **more):
        raw = mx.broadcast_to(self._given, (*tokens.shape, self._given.size))
        clipped = mx.where(mx.isnan(raw), raw, mx.clip(raw, 0, 1))
        return super().forward(tokens)._replace(trace={"block00/u_raw": raw, "block00/u": clipped})


@pytest.mark.parametrize(
    "values, verdict, got",
    [
        ([0.5] * 6 + [2.0, -1.0], "pass", "12.5% on the floor, 12.5% on the ceiling, 75.0% trained"),
        ([-1.0, -1.0, -1.0, 2.0, 0.5], "warn", "60.0% on the floor, 20.0% on the ceiling, 20.0% trained"),
        ([-1.0] * 100 + [2.0] * 99 + [0.5], "fail", "50.0% on the floor, 49.5% on the ceiling, 0.5% trained"),
        ([0.5] * 7 + [float("nan")], "fail", "0.0% on the floor, 0.0% on the ceiling, nan% trained"),
    ],
)
def test_what_a_clip_leaves_to_train_is_what_counts(values, verdict, got):
    model = Clipping(values)
    check = run("C24", Context(model, model.args, untrained=True))
    assert (check.verdict, check.got) == (verdict, f"block00/u: {got}")


def test_an_r_that_is_not_a_number_has_something_to_explain():
    model = small("kssm", 40)
    initial = flatten(model.parameters())
    broken = {n: p * float("nan") if n.endswith("omega") else p for n, p in initial.items()}
    model.update(tree_unflatten(list(broken.items())))
    check = run("C9", Context(model, model.args, recipe(), initial=initial, history=[{"step": 9}]))
    assert check.verdict == "fail" and check.got.startswith("R moved by +nan")
