"""Terms beside the cross-entropy: values by hand, gradients by central differences, what each can move."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import flatten
from kssm_mlx.training.loss_terms import TERMS, compute_columns, parse_terms
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_gradient, make_step
from tests.support.tiny_model import TinyModel, random_tokens

pytestmark = pytest.mark.usefixtures("uncompiled")

B, T, V, D = 2, 5, 7, 4
TRAIN = Train(batch_size=4, context=8)


def drawn(shape, seed: int, low=-1.0, high=1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape)


# Where every term is differentiable, and the targets have padding.
LOGITS = drawn((B, T, V), 0, -2, 2)
TARGETS = np.array([[1, 2, 0, 3, -1], [0, 4, 5, -1, -1]])
TRACE = {
    "block00/R": drawn((B, T, 3), 1, 0.85, 0.95),
    "block01/R": drawn((B, T, 3), 2, 0.85, 0.95),
    "block00/delta": drawn((B, T), 3, 0.5, 1),
    "block00/u": drawn((B, T), 4, 0.5, 2),
    "block00/gate": drawn((B, T, 1), 5, 0.2, 0.4),
    "block00/rwkv": drawn((B, T, D), 6),
    "block00/mamba": drawn((B, T, D), 7),
}
OPTIONS = {
    "uncertainty": [{}, {"target": 0.2}],
    "presence": [{}, {"form": "published"}],
    "coherence": [{}, {"kind": "ceiling"}, {"kind": "center"}],
    "eos": [{}, {"token": 3}],
    "gate_entropy": [{}, {"form": "published"}],
}
DIFFERENTIABLE = [
    (name, options) for name in TERMS if not name.startswith("legacy") for options in OPTIONS.get(name, [{}])
]


def value(name: str, options: dict, logits=LOGITS, trace=TRACE) -> mx.array:
    (term,) = parse_terms({name: {"weight": 1, **options}})
    trace = {k: mx.array(a, mx.float32) for k, a in trace.items()}
    return compute_columns([term], mx.array(logits, mx.float32), mx.array(TARGETS), trace)[f"term_{name}"]


def slopes(name: str, options: dict) -> dict[str, np.ndarray]:
    """The gradient of a term with respect to the logits and to everything in the trace."""

    def of(arrays):
        trace = {k: a for k, a in arrays.items() if k != "logits"}
        (term,) = parse_terms({name: {"weight": 1, **options}})
        return compute_columns([term], arrays["logits"], mx.array(TARGETS), trace)[f"term_{name}"]

    arrays = {"logits": LOGITS, **TRACE}
    grads = mx.grad(of)({k: mx.array(a, mx.float32) for k, a in arrays.items()})
    return {k: np.array(g) for k, g in grads.items()}


@pytest.mark.parametrize("name, options", DIFFERENTIABLE)
def test_gradients_agree_with_central_differences(name, options):
    grads, arrays, step, moved = slopes(name, options), {"logits": LOGITS, **TRACE}, 2e-3, 0
    for key, array in arrays.items():
        direction = drawn(array.shape, 11)
        if not np.abs(grads[key]).max():
            continue
        moved += 1
        shifted = [{**arrays, key: array + sign * step * direction} for sign in (1, -1)]
        up, down = (value(name, options, a.pop("logits"), a).item() for a in shifted)
        assert (up - down) / (2 * step) == pytest.approx(
            (grads[key] * direction).sum(), rel=2e-2, abs=2e-4
        ), key
    assert moved


REACH = {
    "uncertainty": {"logits"},
    "presence": {"logits"},
    "eos": {"logits"},
    "output_entropy": {"logits"},
    "tonal": {"block00/R", "block01/R"},
    "coherence": {"block00/R", "block01/R"},
    "bistability": {"block00/delta", "block00/u"},
    "gate_entropy": {"block00/gate"},
    "diversity": {"block00/rwkv", "block00/mamba"},
    "arbiter": {"block00/gate"},
    "legacy_uncertainty": set(),
    "legacy_tonal": set(),
    "legacy_eos": set(),
}


@pytest.mark.parametrize("name", TERMS)
def test_each_term_reaches_what_it_should_and_the_legacy_ones_nothing(name):
    reached = {key for key, g in slopes(name, {}).items() if np.abs(g).max() > 1e-8}
    assert reached == REACH[name]


def test_terms_of_predictions_have_no_gradient_where_nothing_is_scored():
    for name in ("uncertainty", "presence", "eos", "output_entropy"):
        gradient = slopes(name, {})["logits"]
        assert not gradient[TARGETS < 0].any() and gradient[TARGETS >= 0].any()


def exact() -> dict[str, float]:
    """Values by hand, in numpy and float64."""
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    scored, R = TARGETS >= 0, np.mean([TRACE["block00/R"], TRACE["block01/R"]])
    H = -(p * np.log(p)).sum(-1)[scored].mean()
    r, m, gate = (TRACE[f"block00/{name}"] for name in ("rwkv", "mamba", "gate"))
    cosine = ((r * m).sum(-1) / np.linalg.norm(r, axis=-1) / np.linalg.norm(m, axis=-1)).mean()
    return {
        "uncertainty": abs(H / math.log(V) - 0.5),
        "legacy_uncertainty": abs(H / math.log(V) - 0.5),
        "presence": (p**2).sum(-1)[scored].mean(),
        "tonal": R - 0.8,
        "legacy_tonal": R - 0.8,
        "coherence": (R - 0.45 - 0.1) ** 2,
        "bistability": 0.1 / (TRACE["block00/delta"].mean() + 1e-5)
        - 0.5 * math.log(TRACE["block00/u"].mean()),
        "eos": p[..., 0][scored].mean(),
        "legacy_eos": 5 / 10,  # two targets of 0 and three of padding
        "output_entropy": -H,
        "gate_entropy": (gate * np.log(gate) + (1 - gate) * np.log(1 - gate)).mean(),
        "diversity": (1 + cosine) / 2,
        "arbiter": -np.log(1 - gate).mean(),  # a gate below 1/2 fuses nearer to the Mamba branch
    }


@pytest.mark.parametrize("name", TERMS)
def test_values_are_what_they_are_by_hand(name):
    assert value(name, {}).item() == pytest.approx(exact()[name], rel=1e-4)


def test_the_published_forms_are_the_opposite():
    assert value("presence", {"form": "published"}).item() == pytest.approx(1 - exact()["presence"], rel=1e-5)
    published = slopes("presence", {"form": "published"})["logits"]
    np.testing.assert_allclose(published, -slopes("presence", {})["logits"], atol=1e-7)
    assert value("gate_entropy", {"form": "published"}).item() == pytest.approx(
        -exact()["gate_entropy"], rel=1e-5
    )


def test_a_barrier_on_a_clamped_u_pushes_nothing():
    """The floor of K-SSM v3: at u = clip(u_raw, 0.1, 10) = 0.1 the term is 1.15 and has no gradient."""

    def reg(raw):
        trace = {"block00/delta": mx.ones((1, 4)), "block00/u": mx.clip(raw, 0.1, 10.0)}
        (term,) = parse_terms({"bistability": {"weight": 1, "determinant": 0}})
        return compute_columns([term], None, mx.zeros((1, 4), mx.int32), trace)["term_bistability"]

    assert reg(mx.full((1, 4), -1.0)).item() == pytest.approx(0.5 * math.log(10), rel=1e-4)
    assert not mx.grad(reg)(mx.full((1, 4), -1.0)).any().item()
    assert mx.grad(reg)(mx.full((1, 4), 0.5)).any().item()


# In the step


def objective(params, section: dict, tokens) -> float:
    totals, _ = make_gradient(TinyModel(), TRAIN, loss=parse_terms(section))(params, tokens, None, None)
    return (totals.nats + sum(v for k, v in totals.terms.items() if k.startswith("term_"))).item()


def test_the_step_follows_the_objective_and_keeps_the_cross_entropy_apart():
    section = {"uncertainty": {"weight": 3, "target": 0.2}, "tonal": {"weight": 2, "limit": 0.1}}
    tokens, model = random_tokens(), TinyModel()
    plain, _ = make_gradient(model, TRAIN)(model.parameters(), tokens, None, None)
    totals, _ = make_gradient(model, TRAIN, loss=parse_terms(section))(model.parameters(), tokens, None, None)
    assert totals.nats.item() == plain.nats.item()
    grads, bump = flatten(totals.grads), 1e-2
    for name, index in (("head.bias", (3,)), ("log_rate", (2,)), ("phases", (1, 4))):
        ends = []
        for sign in (1, -1):
            params = {k: mx.array(np.array(a)) for k, a in flatten(model.parameters()).items()}
            params[name][index] = params[name][index] + sign * bump
            ends.append(objective(tree_unflatten(list(params.items())), section, tokens))
        assert (ends[0] - ends[1]) / (2 * bump) == pytest.approx(
            grads[name][index].item(), rel=1e-2, abs=2e-3
        )
    assert abs(grads["log_rate"][2] - flatten(plain.grads)["log_rate"][2]).item() > 1e-3


def test_metrics_have_a_column_per_term_and_micro_batches_share_it_by_tokens():
    section = {"output_entropy": {"weight": 0.5}, "eos": {"weight": 10}}
    tokens = random_tokens()
    tokens[0, 3:] = -1

    def metrics(**train):
        own = TRAIN.model_copy(update=train)
        model = TinyModel()
        step = make_step(model, own, loss=parse_terms(section), compile=False)
        return step(initial_state(model, own), tokens)[1]

    whole, pieces = metrics(), metrics(accumulation=2)
    assert {"term_output_entropy", "output_entropy_nats", "term_eos"} <= whole.keys()
    assert whole["term_output_entropy"].item() == pytest.approx(-0.5 * whole["output_entropy_nats"].item())
    for name in ("term_output_entropy", "term_eos", "loss", "grad_norm"):
        assert pieces[name].item() == pytest.approx(whole[name].item(), rel=1e-5)


# In recipes


@pytest.mark.parametrize(
    "section, message",
    [
        ({"uncertanty": {"weight": 1}}, "unknown term 'uncertanty'; did you mean 'uncertainty'"),
        ({"tonal": {"weight": 1, "limt": 1}}, "unknown key 'tonal.limt'; did you mean 'limit'"),
        (
            {"tonal": {"weight": 1, "limit": "high"}},
            "tonal.limit: input should be a valid number, got 'high'",
        ),
        (
            {"coherence": {"weight": 1, "kind": "roof"}},
            "coherence.kind: input should be 'ceiling', 'center' or",
        ),
        ({"tonal": {}}, "tonal.weight is missing"),
        ({"tonal": {"weight": math.inf}}, "tonal.weight: input should be a finite number"),
        ({"uncertainty": {"weight": 1, "target": 7}}, "uncertainty.target: .*less than or equal to 1, got 7"),
        ({"coherence": {"weight": 1, "width": -1}}, "coherence.width: .*greater than or equal to 0, got -1"),
        ({"legacy_eos": {"weight": 1, "token": -5}}, "legacy_eos.token: .*greater than or equal to 0, got"),
        ({"eos": {"weight": 1, "token": 5000}}, "loss.eos.token is 5000, but the ids are 0 to 255"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        parse_terms(section, 256)


def test_a_model_without_the_quantity_is_told():
    with pytest.raises(
        ConfigError, match=r"loss\.diversity reads 'rwkv' from the model's trace, which has none"
    ):
        make_gradient(TinyModel(), TRAIN, loss=parse_terms({"diversity": {"weight": 1}}))(
            TinyModel().parameters(), random_tokens(), None, None
        )
