"""D2 to D13: states that are dead, forgetful or lost, mixers that are silent, and the healthy families."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from kssm_mlx import models
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.core.state_recording import record_states, view_states, with_views
from kssm_mlx.data.batches import random_batch
from kssm_mlx.models.hybrids import parallel
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from tests.support import broken_states as broken
from tests.support.check_contexts import measure
from tests.support.fakes import Memoryless, TinyRecurrent
from tests.support.small_runs import CONTEXT

pytestmark = pytest.mark.usefixtures("uncompiled")
STATE = ("D2", "D5", "D6", "D9", "D10")
AFTER = (*STATE, "D3", "D4", "D7", "D8", "D13")
STEPS = 30
SMALL = {
    "kssm": {"d_model": 32, "n_layers": 2, "n_groups": 16, "mlp_hidden": 32, "memory": 32},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2},
    "rwkv7": {"hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16},
    "hybrid": {"d_model": 32, "n_layers": 2, "head_dim": 16, "mamba_head_dim": 16, "state_size": 8},
    "transformer": {"d_model": 32, "n_layers": 2},
}


def fit(prepared, family: str, seed: int = 0) -> Context:
    """A small model of a family after some steps of the trainer."""
    data, recipe = prepared
    config = models.configure(family, "xs", vocab_size=data.vocab_size, context=32, overrides=SMALL[family])
    model = models.build(config, seed)
    train = Train(steps=STEPS, context=CONTEXT, batch_size=8, learning_rate=3e-3, warmup=10)
    state, step = initial_state(model, train), make_step(model, train, compile=False)
    for i in range(STEPS):
        tokens = mx.array(random_batch(data.train, seed, i, 8, CONTEXT).tokens)
        state, _ = step(state, tokens, None)
        mx.eval(state)
    model.update(state.params)
    history = [{"kind": "train", "step": STEPS, "loss": 0.0}]
    return Context(model, config, recipe, data, data.tokenizer, history=history, seed=seed)


@pytest.fixture(scope="module")
def families(prepared):
    """Each family, trained once."""
    return {family: fit(prepared, family) for family in SMALL}


def as_kind(ctx: Context, kind: type) -> Context:
    """The same weights in a model of another class."""
    model = kind(ctx.data.vocab_size, width=32)
    model.update(ctx.model.parameters())
    return replace(ctx, model=model)


def ruled(ctx: Context, kind: type, seed: int = 0) -> Context:
    return replace(ctx, model=kind(ctx.data.vocab_size, seed), seed=seed)


@pytest.mark.parametrize("family", SMALL)
def test_healthy_families_pass(families, family):
    found = [measure(id, families[family]) for id in AFTER]
    assert [(c.id, c.got) for c in found if not c.ok] == []
    assert family == "transformer" or {c.id for c in found if c.verdict != "pass"} <= {"D3", "D5", "D7", "D8"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("family", ["kssm", "mamba", "rwkv", "hybrid", "transformer"])
def test_healthy_families_pass_for_five_seeds(prepared, family, seed):
    ctx = fit(prepared, family, seed)
    found = [measure(id, ctx) for id in (*AFTER, "D18", "D21", "N14")]
    assert [(c.id, c.got) for c in found if not c.ok] == []


@pytest.mark.parametrize("seed", range(5))
def test_a_sound_rule_passes_for_five_seeds(trained, seed):
    found = [measure(id, ruled(trained, broken.Rule, seed)) for id in STATE]
    assert [(c.id, c.got) for c in found if c.verdict != "pass"] == []


@pytest.mark.parametrize("seed", range(5))
def test_a_fresh_reset_is_exact_for_five_seeds(trained, seed):
    model = TinyRecurrent(trained.data.vocab_size, seed=seed)
    assert measure("D13", replace(trained, model=model, seed=seed)).verdict == "pass"


@pytest.mark.parametrize(
    "id, kind, got, fix",
    [
        ("D2", broken.Unwritten, "cosine 1.0000", "not written"),
        ("D2", broken.Forgetful, "half-life 0.5 tokens", "forgets everything at once"),
        ("D5", broken.Growing, "growth", "the recurrence is unstable"),
        ("D5", broken.Faint, "RMS 3.4e-08", "not written, or overflows"),
        ("D6", broken.Spiked, "0.0", "one entry dwarfs the others"),
        ("D9", broken.Once, "0 (block 0)", "write gate"),
        ("D10", broken.Copies, "rank 1.0", "spare"),
        ("D10", broken.MostlyDead, "95% dead", "spare"),
    ],
)
def test_a_broken_state_is_caught(trained, id, kind, got, fix):
    check = measure(id, ruled(trained, kind))
    assert check.verdict == "fail" and got in check.got and fix in check.fix


@pytest.mark.parametrize("id", STATE)
def test_nan_passes_nothing(trained, id):
    assert measure(id, ruled(trained, broken.Damaged)).verdict == "fail"


def test_a_forgetful_state_passes_what_the_notes_asked(trained):
    """Movement, size, entropy and rank cannot tell it from a memory; the half-life of D2 can."""
    forgetful = ruled(trained, broken.Forgetful)
    assert all(measure(id, forgetful).verdict == "pass" for id in STATE if id != "D2")


def test_untrained_models_and_missing_data_are_refused(trained):
    fresh = replace(trained, history=[])
    assert all("untrained" in measure(id, fresh).got for id in STATE)
    assert "needs data" in measure("D2", replace(trained, data=None)).got


@pytest.mark.parametrize("id", STATE)
def test_without_a_state_nothing_is_measured(families, prepared, id):
    assert "a list that grows" in measure(id, families["transformer"]).got
    v3 = models.build(models.configure("kssm_v3", "xs", vocab_size=40))
    assert "carries no state" in measure(id, replace(families["kssm"], model=v3)).got


@pytest.mark.parametrize("family", ["kssm", "mamba", "rwkv", "rwkv7", "hybrid"])
def test_states_can_be_read_and_put_back(families, family):
    """What was recorded token by token is what one call leaves; a view put back changes nothing."""
    ctx = families[family]
    tokens = np.arange(24).reshape(2, 12) % ctx.data.vocab_size
    recorded, cache = record_states(ctx.model, tokens), ctx.model.forward(mx.array(tokens)).cache
    seen = view_states(ctx.model, cache)
    for name, states in recorded.items():
        assert np.allclose(states[:, -1], np.array(seen[name]), rtol=1e-3, atol=1e-4)
    again = view_states(ctx.model, with_views(ctx.model, cache, seen))
    assert all(mx.allclose(again[name], seen[name], rtol=1e-5, atol=1e-6) for name in seen)


@pytest.mark.parametrize("kind", [broken.NoResets, broken.Biased])
def test_a_reset_that_does_not_reach_everything_is_caught(trained, kind):
    check = measure("D13", as_kind(trained, kind))
    assert check.verdict == "fail" and "every array of the cache" in check.fix


def test_nothing_to_reset_is_not_a_pass(trained):
    check = measure("D13", as_kind(trained, Memoryless))
    assert check.verdict == "not measurable" and "see C1" in check.got


def quiet(factor):
    class Quiet(parallel.RWKV):
        def __call__(self, *args):
            y, *rest = super().__call__(*args)
            return factor(y), *rest

    return Quiet


@pytest.fixture
def silenced(families):
    """The hybrid with its RWKV branch under a function, put back afterwards."""
    blocks = families["hybrid"].model.blocks

    def silence(factor):
        for block in blocks:
            block.rwkv.__class__ = quiet(factor)
        return families["hybrid"]

    yield silence
    for block in blocks:
        block.rwkv.__class__ = parallel.RWKV


@pytest.mark.parametrize(
    "factor, got",
    [
        (lambda y: 1e-3 * y, "RMS rwkv/mamba 0.000"),
        (lambda y: 0 * y + y.mean(axis=1, keepdims=True), "over time"),
        (lambda y: 0 * y + y.mean(axis=0, keepdims=True), "over the batch"),
        (lambda y: 0 * y, "variation 0 "),
    ],
)
def test_a_silent_branch_is_caught(silenced, factor, got):
    check = measure("D4", silenced(factor))
    assert check.verdict == "fail" and got in check.got and "dead or drowned" in check.fix


def test_a_branch_that_learns_nothing_is_caught(silenced):
    check = measure("D3", silenced(lambda y: 1e-4 * y))
    assert check.verdict == "fail" and "(rwkv/mamba)" in check.got and "train.groups" in check.fix


def changed(ctx: Context, ending: str, change) -> Context:
    """The same with other values in the parameters of a name."""
    model = models.build(ctx.config)
    flat = [(n, change(p) if n.endswith(ending) else p) for n, p in tree_flatten(ctx.model.parameters())]
    model.update(tree_unflatten(flat))
    return replace(ctx, model=model)


def test_a_time_step_that_ignores_the_token_is_caught(families):
    young = changed(families["mamba"], "dt_proj.weight", lambda p: 0 * p)
    check = measure("D7", replace(young, history=[{"kind": "train", "step": 500}]))
    assert check.verdict == "fail" and "ignores its input" in check.fix
    assert measure("D7", young).verdict == "warn"
    assert "depend on the token" in measure("D7", families["rwkv"]).got


@pytest.mark.parametrize("value, least, most", [(12.0, 0, 0.2), (-30.0, 1e6, np.inf)])
def test_decays_at_an_extreme_are_caught(families, value, least, most):
    check = measure("D8", changed(families["mamba"], "A_log", lambda p: 0 * p + value))
    assert check.verdict == "fail" and check.got.startswith("1 (block00/decay)")
    assert least <= check.numbers["half_lives"]["block00/decay"][2] <= most
