"""What a step looks after beside the loss: noise, knobs, masks, interventions, groups of parameters."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Clamp, Intervention, flatten
from kssm_mlx.training.evaluation import make_evaluator
from kssm_mlx.training.loss_terms import parse_terms
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import from_arrays, initial_state, to_arrays, with_knobs
from kssm_mlx.training.step import make_gradient, make_step
from tests.support.controlled_model import VOCAB, ControlledModel
from tests.support.tiny_model import TinyModel


def one_byte(targets):
    return 1.0


def tokens(seed: int = 1) -> mx.array:
    return mx.random.randint(0, VOCAB, (4, 9), key=mx.random.key(seed)).astype(mx.int32)


def recipe(**changes) -> Train:
    own = {"steps": 50, "batch_size": 4, "context": 8, "warmup": 0, "learning_rate": 0.01}
    return Train(**own | changes)


def steps(count: int, model=None, state=None, train=None, compile=False, **options):
    """(state, metrics of the last step) after some steps on one batch."""
    model, train = model or ControlledModel(), train or recipe()
    step = make_step(model, train, compile=compile, **options)
    state = state or initial_state(model, train)
    for _ in range(count):
        state, metrics = step(state, tokens())
        mx.eval(state, metrics)
    return state, metrics


def same(a, b) -> bool:
    a, b = flatten(a), flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# Noise


def test_noise_is_of_the_states_key_and_the_global_stream_is_left_alone():
    mx.random.seed(1)
    one, first = steps(3)
    mx.random.seed(2)
    two, second = steps(3)
    assert same(one, two) and same(first, second)
    other, _ = steps(3, train=recipe(seed=1))
    assert not same(one.params, other.params)


def test_every_step_and_every_piece_draws_anew():
    model, train = ControlledModel(), recipe(learning_rate=1e-30, weight_decay=0)
    step, state = make_step(model, train, compile=False), initial_state(model, train)
    losses = []
    for _ in range(3):
        state, metrics = step(state, tokens())
        losses.append(metrics["loss"].item())
    assert len(set(losses)) == 3
    seen = []

    class Watched(ControlledModel):
        def forward(self, *args, key=None, **options):
            seen.append(key.tolist())
            return super().forward(*args, key=key, **options)

    steps(2, Watched(), train=recipe(accumulation=2))
    assert len(seen) == 4 and len(set(map(tuple, seen))) == 4


def test_the_noise_is_drawn_in_training_and_not_in_evaluation():
    model = ControlledModel()
    model.eval()  # whatever mode the model is left in
    gradient = make_gradient(model, recipe())
    nats = [
        gradient(model.trainable_parameters(), tokens(), None, None, {}, mx.random.key(k))[0].nats
        for k in (0, 1)
    ]
    assert nats[0].item() != nats[1].item() and not model.training
    model.train()
    score = make_evaluator(model, compile=False)
    windows = [(tokens(), None)]
    assert score(model.parameters(), windows, one_byte) == score(model.parameters(), windows, one_byte)
    assert model.training


def test_compiled_the_noise_changes_with_the_key_and_is_traced_once():
    model, calls = ControlledModel(), []
    forward = model.forward
    model.forward = lambda *args, **options: calls.append(1) or forward(*args, **options)
    train = recipe(learning_rate=1e-30, weight_decay=0)
    step, state = make_step(model, train, monitor=True), initial_state(model, train)
    losses = []
    for turn in (1.0, 1.0, 0.5, 0.25):
        state = state._replace(knobs=state.knobs | {"core.K": mx.array(turn)})
        state, metrics = step(state, tokens())
        losses.append(metrics["loss"].item())
    assert len(set(losses)) == 4 and len(calls) == 1


# Knobs


def test_knobs_are_state_that_no_gradient_moves():
    state, _ = steps(2)
    assert {name: array.item() for name, array in state.knobs.items()} == pytest.approx(
        {"core.K": 1.0, "core.sigma": 0.3}
    )
    assert not any(name.startswith("core.K") for name in flatten([state.params, state.opt]))


def test_a_knob_changes_what_is_computed_in_training_and_evaluation():
    quiet = {"core.K": mx.array(1.0), "core.sigma": mx.array(0.0)}
    model, train = ControlledModel(), recipe()
    state = initial_state(model, train)
    score, windows = make_evaluator(model, compile=False), [(tokens(), None)]
    step, found = make_step(model, train, compile=False, monitor=True), []
    for K in (0.0, 0.5):
        turned = state._replace(knobs=quiet | {"core.K": mx.array(K)})
        R = step(turned, tokens())[1]["R"].item()
        found.append(
            (
                R,
                score(with_knobs(turned.params, turned.knobs), windows, one_byte)["nats_per_token"],
            )
        )
    assert found[1][0] > found[0][0] + 0.05 and found[1][1] != found[0][1]
    assert same(model.parameters(), ControlledModel().parameters())


def test_knobs_are_saved_with_the_weights_and_restored(tmp_path):
    state, _ = steps(1)
    state = state._replace(knobs=state.knobs | {"core.K": mx.array(0.7)})
    weights, rest = to_arrays(state)
    assert weights["core.K"].item() == pytest.approx(0.7)
    for name, arrays in (("weights", weights), ("rest", rest)):
        mx.save_safetensors(str(tmp_path / f"{name}.safetensors"), arrays)
    again = from_arrays(*(mx.load(str(tmp_path / f"{name}.safetensors")) for name in ("weights", "rest")))
    assert same(again._asdict(), state._asdict()) and again.knobs.keys() == state.knobs.keys()


def test_a_checkpoint_from_before_there_were_knobs_still_loads():
    weights, rest = to_arrays(initial_state(TinyModel(), recipe()))
    assert not any(name.startswith("knobs") for name in rest)
    assert from_arrays(weights, rest).knobs == {}


def test_a_knob_that_is_trained_or_missing_is_refused():
    model = ControlledModel()
    model.unfreeze()
    with pytest.raises(ConfigError, match=r"calls core\.K a knob, which should be a frozen array"):
        initial_state(model, recipe())


# Masks and interventions


def test_what_a_mask_holds_keeps_its_bits_under_decay_and_the_rest_moves():
    rows = mx.array(np.arange(8) % 2 == 0)[:, None]
    model = ControlledModel()
    before = initial_state(model, recipe()).params
    held = {"core.push.weight": rows, "embedding.weight": mx.array(False)}
    after, _ = steps(3, model, masks=held, train=recipe(weight_decay=1.0))
    old, new = (np.array(p["core"]["push"]["weight"]) for p in (before, after.params))
    assert (new[1::2] == old[1::2]).all() and (new[::2] != old[::2]).all()
    assert same(before["embedding"], after.params["embedding"])
    assert not mx.any(after.opt["m"]["embedding"]["weight"]).item()


def test_what_is_held_does_not_count_in_the_norm_that_is_clipped():
    masks = {"embedding.weight": mx.array(False)}
    held, free = (steps(1, masks=m)[1]["grad_norm"].item() for m in (masks, None))
    assert held < free


@pytest.mark.parametrize(
    "mask, message",
    [
        ({"core.pull.weight": mx.array(True)}, r"core\.pull\.weight', which is not trained; did you mean"),
        ({"core.omega": mx.ones((3,), mx.bool_)}, r"mask for core\.omega has shape \(3,\)"),
    ],
)
def test_a_mask_of_something_else_is_refused(mask, message):
    with pytest.raises(ConfigError, match=message):
        make_step(ControlledModel(), recipe(), masks=mask)


def test_an_intervention_is_held_in_training_and_in_evaluation():
    """With its one block's output held at 0 the core has no way to the loss."""
    cut = Intervention((Clamp("output", 0.0),))
    model = ControlledModel()
    state, _ = steps(2, model, intervention=cut, train=recipe(weight_decay=0))
    before = initial_state(model, recipe())
    assert same(state.params["core"], before.params["core"])
    assert not same(state.params["head"], before.params["head"])
    loose, tight = (
        make_evaluator(model, intervention=i, compile=False)(model.parameters(), [(tokens(), None)], one_byte)
        for i in (None, cut)
    )
    assert loose["nats_per_token"] != tight["nats_per_token"]


# Groups


def test_groups_scale_learning_rate_and_decay_of_their_component():
    """A single step of Adam moves every entry by its learning rate, whatever the gradient."""
    groups = {"mamba": {"learning_rate": 3.0}, "head": {"learning_rate": 0.0}}
    state, _ = steps(1, train=recipe(groups=groups, weight_decay=0, epsilon=1e-20))
    start = flatten(initial_state(ControlledModel(), recipe()).params)
    moved = {name: mx.max(mx.abs(p - start[name])).item() for name, p in flatten(state.params).items()}
    assert moved["core.omega"] == pytest.approx(0.03, rel=1e-3)
    assert moved["embedding.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["head.weight"] == 0.0


def test_decay_of_a_group_and_of_everything():
    def decays(**train):
        from kssm_mlx.training.optimizers.updates import make_optimizer

        return make_optimizer(ControlledModel(), recipe(**train)).decays

    assert decays()["core.push.weight"] == 0.1 and decays()["core.omega"] == 0.0
    assert decays(decay="all")["core.omega"] == 0.1
    grouped = decays(decay="all", groups={"mamba": {"weight_decay": 0.0}})
    assert grouped["core.omega"] == grouped["core.push.weight"] == 0.0 and grouped["head.weight"] == 0.1


def test_a_group_that_the_model_does_not_have_is_refused():
    with pytest.raises(
        ConfigError, match=r"train\.groups\.mambo: .* it has head, mamba, rwkv; did you mean 'mamba'"
    ):
        make_step(ControlledModel(), recipe(groups={"mambo": {}}))


def test_the_gradient_of_each_component_is_logged_where_two_mixers_meet():
    model, train = ControlledModel(), recipe(clip=1e-3)
    state, metrics = initial_state(model, train), steps(1, model, train=recipe(clip=1e-3))[1]
    _, noise = mx.random.split(state.key)
    totals, _ = make_gradient(model, train)(state.params, tokens(), None, None, state.knobs, noise)
    grads = {n: np.array(g) / 32 for n, g in flatten(totals.grads).items()}
    both = np.concatenate([grads["core.omega"].ravel(), grads["core.push.weight"].ravel()])
    assert metrics["grad_rms_mamba"].item() == pytest.approx(np.sqrt((both**2).mean()), rel=1e-4)
    assert {"grad_rms_rwkv", "grad_rms_head"} <= metrics.keys()

    def columns(**train):
        tiny = TinyModel()
        step = make_step(tiny, recipe(**train), compile=False)
        return [c for c in step(initial_state(tiny, recipe()), tokens())[1] if c.startswith("grad_rms")]

    assert columns() == [] and "grad_rms_embedding" in columns(component_gradients=True)


# Observables of the whole model


def test_monitored_columns_are_what_they_are_by_hand():
    model = ControlledModel()
    model.core.sigma = mx.array(0.0)
    out = model.forward(tokens()[:, :-1])
    _, metrics = steps(1, model, monitor=True)
    theta, R = np.array(out.trace["block00/theta"], np.float64), np.array(out.trace["block00/R"], np.float64)
    p = np.exp(np.array(out.logits, np.float64))
    p /= p.sum(-1, keepdims=True)
    U = -(p * np.log(p)).sum(-1).mean() / np.log(VOCAB)
    z = np.exp(1j * theta).mean()
    expected = {
        "R": R.mean(),
        "U": U,
        "RU": R.mean() * U,
        "phase_mean": np.angle(z),
        "phase_std": np.sqrt(-2 * np.log(abs(z))),
        "omega_std": np.linspace(-1, 1, 8).std(),
    }
    for name, number in expected.items():
        assert metrics[name].item() == pytest.approx(number, rel=2e-2 if name == "omega_std" else 1e-4), name
    assert "U" not in steps(1, model)[1]


@pytest.mark.slow  # half a minute of g++
def test_terms_that_read_the_same_things_compile_beside_each_other_and_the_monitor():
    """MLX 0.32.4 loses an edge of such a graph unless terms are kept apart."""
    section = {"eos": {"weight": 1.0}, "presence": {"weight": 1.0}, "tonal": {"weight": 1.0, "limit": 0.1}}
    options = {"loss": parse_terms(section), "monitor": True}
    (one, compiled), (two, eager) = (steps(1, compile=c, **options) for c in (True, False))
    for name in eager:
        np.testing.assert_allclose(compiled[name].item(), eager[name].item(), rtol=1e-4, err_msg=name)
    for name, array in flatten(two.params).items():
        np.testing.assert_allclose(flatten(one.params)[name], array, atol=1e-5, err_msg=name)
