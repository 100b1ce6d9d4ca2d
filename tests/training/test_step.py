"""The step is pure, compiled once, the same for any cut of the batch, and refuses what would spoil a run."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from kssm_mlx import models
from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.models.base import flatten
from kssm_mlx.training import loss_terms
from kssm_mlx.training.losses import cross_entropy
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import from_arrays, initial_state, to_arrays
from kssm_mlx.training.step import make_gradient, make_step
from tests.support.tiny_model import GrowingModel, TinyModel, random_tokens


def recipe(**changes) -> Train:
    return Train(**{"steps": 50, "batch_size": 4, "context": 8, "warmup": 2, "learning_rate": 0.01} | changes)


def run(train: Train, steps: int = 3, model=None, tokens=None, resets=None, compile=False):
    """(state, list of metrics) after some steps on batches that depend on the step alone.

    Compilation is asked for where it is what is tested: on a fresh machine each costs seconds of g++.
    """
    model = model or TinyModel()
    step, state, rows = make_step(model, train, compile=compile), initial_state(model, train), []
    for i in range(steps):
        state, metrics = step(state, random_tokens(seed=i) if tokens is None else tokens, resets)
        mx.eval(state, metrics)
        rows.append(metrics)
    return state, rows


def assert_same_bits(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        assert np.array(a[name]).tobytes() == np.array(b[name]).tobytes(), name


def assert_close(a, b, tolerance=2e-6):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(np.array(a[name]), np.array(b[name]), atol=tolerance, err_msg=name)


def test_same_state_and_batch_give_the_same_bits_from_two_compilations():
    (one, rows), (two, others) = run(recipe(), compile=True), run(recipe(), compile=True)
    assert_same_bits(one._asdict(), two._asdict())
    assert_same_bits(rows, others)


def test_compiled_equals_eager():
    assert_close(run(recipe(), compile=True)[0].params, run(recipe())[0].params)


def test_a_step_leaves_the_model_and_the_state_it_was_given_alone():
    model = TinyModel()
    before = tree_map(lambda a: mx.array(np.array(a)), model.parameters())
    state = initial_state(model, recipe())
    kept = tree_map(np.array, state._asdict())
    mx.eval(make_step(model, recipe(), compile=True)(state, random_tokens()))
    assert_same_bits(before, model.parameters())
    assert_same_bits(kept, state._asdict())


def test_the_step_is_traced_once():
    model = TinyModel()
    run(recipe(), steps=6, model=model, compile=True)
    assert model.traces == 1


def test_hand_off_and_accumulation_trace_at_most_twice():
    model = TinyModel()
    run(recipe(hand_off=True, accumulation=2), 5, model, resets=mx.zeros((4, 8), mx.bool_), compile=True)
    assert model.traces == 2  # without a carry, and with one


def test_training_learns_a_repeated_batch():
    _, rows = run(recipe(learning_rate=0.05), steps=50, tokens=random_tokens())
    assert rows[-1]["loss"].item() < 0.5 * rows[0]["loss"].item()


def float64_nats(params: dict[str, np.ndarray], tokens: np.ndarray) -> float:
    """The tiny model and its loss in numpy: mx.exp and mx.sin are fp32-accurate even in float64."""
    x = params["embedding.weight"][tokens[:, :-1]]
    keep, state, nats = 1 / (1 + np.exp(-params["log_rate"])), 0.0, 0.0
    for t in range(x.shape[1]):
        state = keep * state + np.tanh(x[:, t] + params["phases"][0])
        logits = np.sin(state + params["phases"][1]) @ params["head.weight"].T + params["head.bias"]
        picked = logits[np.arange(len(tokens)), tokens[:, t + 1]]
        nats += (np.log(np.exp(logits).sum(axis=1)) - picked).sum()
    return nats


def test_the_gradient_agrees_with_central_differences_in_float64():
    model, tokens = TinyModel(), random_tokens(2)
    totals, _ = make_gradient(model, recipe())(model.parameters(), tokens, None, None)
    grads = flatten(totals.grads)
    params = {name: np.array(p, dtype=np.float64) for name, p in flatten(model.parameters()).items()}
    assert totals.nats.item() == pytest.approx(float64_nats(params, np.array(tokens)), rel=1e-6)
    for name, p in params.items():
        for index in list(np.ndindex(p.shape))[:6]:
            bump = np.zeros(p.shape)
            bump[index] = 1e-5
            up, down = ({**params, name: p + sign * bump} for sign in (1, -1))
            slope = (float64_nats(up, np.array(tokens)) - float64_nats(down, np.array(tokens))) / 2e-5
            assert grads[name][index].item() == pytest.approx(slope, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_micro_batches_give_the_gradient_of_the_one_big_batch(pieces, padded):
    """Token-weighted: a mean of the means of the pieces would fail where the rows count unequally."""
    tokens = random_tokens()
    if padded:
        tokens[0, 3:] = -1
        tokens[3, 6:] = -1
    whole, rows = run(recipe(), tokens=tokens)
    split, others = run(recipe(accumulation=pieces), tokens=tokens)
    assert rows[0]["tokens"].item() == (32 - 6 - 3 if padded else 32)
    assert_close(whole.params, split.params, 1e-5)
    assert_close(whole.opt["m"], split.opt["m"])
    assert_close(rows, others, 1e-5)


def test_the_mean_of_unequal_means_is_not_what_we_compute():
    """The peer's rule, on the same batch, is measurably another gradient: the test above can fail."""
    model, tokens = TinyModel(), random_tokens()
    tokens[0, 3:] = -1
    gradient = make_gradient(model, recipe())

    def mean_grads(rows):
        totals, _ = gradient(model.parameters(), rows, None, None)
        return tree_map(lambda g: g / totals.tokens, totals.grads)

    of_means = tree_map(lambda a, b: (a + b) / 2, mean_grads(tokens[:2]), mean_grads(tokens[2:]))
    with pytest.raises(AssertionError):
        assert_close(mean_grads(tokens), of_means, 1e-3)


def test_accumulation_holds_the_activations_of_one_piece(repeatable_peak):
    def peak(pieces: int) -> int:
        train, model = recipe(accumulation=pieces, batch_size=64), TinyModel(width=8)
        step, state = make_step(model, train, compile=False), initial_state(model, train)
        tokens = random_tokens(64, 65)
        mx.eval(tokens)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(step(state, tokens))
        return mx.get_peak_memory() - before

    assert peak(8) < peak(1) / 3


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted():
    model, train = TinyModel(), recipe()
    step = make_step(model, train, compile=False)
    state, _ = step(initial_state(model, train), random_tokens())
    broken = state._replace(params=state.params | {"log_rate": state.params["log_rate"] * mx.array(np.nan)})
    for skips in (1, 2):
        after, metrics = step(broken, random_tokens())
        assert (metrics["skipped"].item(), metrics["skips"].item()) == (1, skips)
        assert_same_bits(after.params, broken.params)
        assert_same_bits([after.opt[k] for k in "mv"], [broken.opt[k] for k in "mv"])
        assert after.opt["count"].item() == 1 and after.step.item() == 1 + skips
        broken = after
    healed, metrics = step(broken._replace(params=state.params), random_tokens())
    assert (metrics["skipped"].item(), metrics["skips"].item()) == (0, 0)
    assert healed.opt["count"].item() == 2


def test_one_infinite_gradient_in_a_later_step_leaves_the_moments_clean():
    """What the guard is for: without it one bad batch poisons both moments for good."""
    model, train = TinyModel(), recipe()
    step = make_step(model, train, compile=False)
    state = initial_state(model, train)
    bad = state.params | {"head": state.params["head"] | {"bias": mx.full((11,), mx.inf)}}
    state, metrics = step(state._replace(params=bad), random_tokens())
    assert metrics["skipped"].item() == 1
    assert all(mx.all(mx.isfinite(a)).item() for a in flatten([state.opt["m"], state.opt["v"]]).values())


def test_hand_off_continues_the_state_and_a_reset_ends_it():
    """Two batches of one track, handed off, give the loss of the track in one piece; a reset cuts it."""
    model = TinyModel()
    track, frozen = random_tokens(4, 17), recipe(hand_off=True, learning_rate=1e-30, weight_decay=0)
    none = mx.zeros((4, 8), mx.bool_)
    first = mx.array(np.eye(1, 8, dtype=bool).repeat(4, axis=0))

    def second_half(resets):
        step, state = make_step(model, frozen, compile=False), initial_state(model, frozen)
        state, _ = step(state, track[:, :9], none)
        return step(state, track[:, 8:], resets)[1]["loss"].item()

    def nats(tokens):
        return cross_entropy(model.forward(tokens[:, :-1]).logits, tokens[:, 1:])[0].item()

    whole = (nats(track) - nats(track[:, :9])) / 32
    assert second_half(none) == pytest.approx(whole, rel=1e-5)
    assert second_half(first) == pytest.approx(nats(track[:, 8:]) / 32, rel=1e-5)
    assert abs(second_half(none) - second_half(first)) > 1e-3


def test_hand_off_goes_through_accumulation_row_by_row():
    resets = mx.zeros((4, 8), mx.bool_)
    whole, _ = run(recipe(hand_off=True), resets=resets)
    split, _ = run(recipe(hand_off=True, accumulation=4), resets=resets)
    assert_close(whole.carry, split.carry, 1e-4)


def test_hand_off_refuses_a_cache_that_grows():
    with pytest.raises(ConfigError, match="hand_off needs a state of fixed size, but the cache of growing"):
        run(recipe(hand_off=True), model=GrowingModel(), compile=True)


def test_bf16_computes_low_and_keeps_masters_and_named_parameters_in_fp32():
    seen = {}

    class Watched(TinyModel):
        def forward(self, tokens, *args, **options):
            seen.update({name: p.dtype for name, p in flatten(self.parameters()).items()})
            return super().forward(tokens, *args, **options)

    low, rows = run(recipe(precision="bfloat16"), model=Watched())
    assert seen["head.weight"] == mx.bfloat16 and seen["log_rate"] == mx.float32
    assert {a.dtype for a in flatten([low.params, low.opt["m"], low.opt["v"]]).values()} == {mx.float32}
    assert rows[0]["loss"].item() == pytest.approx(run(recipe())[1][0]["loss"].item(), rel=2e-2)


def test_checkpointing_is_handed_to_a_model_that_offers_it_and_refused_elsewhere():
    model = TinyModel()
    model.checkpoint_blocks = False
    make_step(model, recipe(checkpoint_blocks=True))
    assert model.checkpoint_blocks is True
    with pytest.raises(ConfigError, match="tiny has no gradient checkpointing"):
        make_step(TinyModel(), recipe(checkpoint_blocks=True))


def test_a_block_that_is_computed_again_writes_no_state_out_for_nobody(repeatable_peak):
    """What a checkpoint returns is computed, and a trace has every state of every token."""
    sizes = {"n_layers": 3, "d_model": 16, "n_groups": 64, "expansion": 8, "mlp_hidden": 0}
    model = models.build(models.configure("kssm", "xs", vocab_size=17, context=128, overrides=sizes), seed=0)

    def measure(**changes):
        train = recipe(batch_size=4, context=128, **changes)
        step, state = make_step(model, train, compile=False), initial_state(model, train)
        tokens = random_tokens(4, 129)
        mx.eval(tokens, state.params)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        _, metrics = step(state, tokens)
        mx.eval(metrics)
        return mx.get_peak_memory() - before, metrics

    (plain, expected), (less, metrics) = measure(), measure(checkpoint_blocks=True)
    assert less < 1.1 * plain
    assert metrics.keys() == expected.keys() and "R_block02" in metrics
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value.item(), rel=1e-4), name
    # A loss that reads the trace has it, and so has whoever asks when the step is done.
    train = recipe(checkpoint_blocks=True, batch_size=4, context=128)
    terms = loss_terms.parse_terms({"coherence": {"weight": 1.0, "target": 0.45}})
    step, tokens = make_step(model, train, loss=terms, compile=False), random_tokens(4, 129)
    assert step(initial_state(model, train), tokens)[1]["term_coherence"].item() > 0
    assert "block00/R" in model.forward(random_tokens(1, 8)).trace


def test_a_block_that_is_computed_again_leaves_nothing_traced_in_the_model():
    """Its second pass comes after the model was given its own parameters back."""
    model = models.build(models.configure("gru", "xs", vocab_size=17, context=8), seed=0)
    before = np.array(model.embedding.weight)
    run(recipe(checkpoint_blocks=True), steps=1, model=model, tokens=random_tokens(), compile=True)
    mx.eval(model.parameters())
    np.testing.assert_array_equal(np.array(model.embedding.weight), before)


def test_metrics_name_the_observables_of_each_block_and_average_angles_on_the_circle():
    model, tokens = TinyModel(), random_tokens()
    trace = model.forward(tokens[:, :-1]).trace
    _, (metrics, *_) = run(recipe(accumulation=2), steps=1, tokens=tokens)
    psi = np.array(trace["block00/psi"])
    assert metrics["R_block00"].item() == pytest.approx(trace["block00/R"].mean().item(), rel=1e-5)
    expected = np.angle(np.exp(1j * psi).mean())
    assert metrics["psi_block00"].item() == pytest.approx(expected, abs=1e-5)
    assert abs(expected - psi.mean()) > 1e-2  # a plain mean of the angles is another number
    assert metrics.keys() == {
        *("loss", "grad_norm", "lr", "tokens", "skipped", "skips", "R_block00", "psi_block00")
    }


def test_a_frozen_parameter_is_neither_trained_nor_in_the_state():
    model = TinyModel()
    model.freeze(keys=["phases"], recurse=False)
    state, _ = run(recipe(), model=model)
    assert "phases" not in state.params and "log_rate" in state.params


def test_a_state_saved_in_any_order_goes_on_with_the_same_bits(tmp_path):
    """The order of the names in a file must not reach the sum behind the gradient norm."""
    train, model = recipe(hand_off=True), TinyModel()
    step = make_step(model, train, compile=False)
    state, _ = step(initial_state(model, train), random_tokens())
    files = []
    for i, arrays in enumerate(to_arrays(state)):
        mx.save_safetensors(str(tmp_path / f"{i}.safetensors"), dict(reversed(arrays.items())))
        files.append(mx.load(str(tmp_path / f"{i}.safetensors")))
    resumed = from_arrays(*files)
    assert list(flatten(resumed.params)) == list(flatten(state.params))
    assert_same_bits(resumed._asdict(), state._asdict())
    (one, m1), (two, m2) = step(state, random_tokens(seed=2)), step(resumed, random_tokens(seed=2))
    assert_same_bits([one._asdict(), m1], [two._asdict(), m2])


def test_an_optimizer_file_without_a_field_is_refused():
    params, rest = to_arrays(initial_state(TinyModel(), recipe()))
    with pytest.raises(CheckpointError, match="lacks cursor"):
        from_arrays(params, {k: v for k, v in rest.items() if k != "cursor"})
    with pytest.raises(CheckpointError, match="unknown colour"):
        from_arrays(params, rest | {"colour": mx.array(1)})


def test_the_key_moves_on_with_every_step():
    state, _ = run(recipe(), steps=2)
    assert not mx.array_equal(state.key, mx.random.key(0)).item()
    assert (state.step.item(), state.cursor.item()) == (2, 2)
