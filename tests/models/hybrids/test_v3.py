"""GroundThink's version 3, repaired and as published: retention asked and got, promises kept and broken."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import build, configure
from kssm_mlx.models.base import component_of
from kssm_mlx.models.hybrids.v3 import PUBLISHED, HybridV3, HybridV3Config
from tests.support import model_contract
from tests.support.model_contract import V, count, moved, tokens
from tests.support.small_kssm import assert_close

pytestmark = pytest.mark.usefixtures("uncompiled")
SMALL = {"d_model": 16, "n_layers": 3, "n_heads": 2, "groups": 4, "window": 8}
VARIANTS = {
    "repaired": {"gamma": 0.5},
    "one group, no anchor": {"gamma": 0.5, "groups": 1, "attention": ()},
    "ungrounded": {"gamma": 0.5, "grounding": False, "tie_embeddings": False},
    "published decay": {"gamma": 0.5, "decay": "published", "init": "senior"},
    "normed by token": {"gamma": 0.5, "state_norm": "token"},
    "v0.2 by token": {"wiring": "v020", "init": "v020", "groups": 8, "state_norm": "token"},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def small(**overrides) -> HybridV3:
    return build(HybridV3Config(**{"vocab_size": V, **SMALL, **overrides}), seed=1)


@every_variant
@pytest.mark.parametrize(
    "promise",
    [
        model_contract.assert_cuts_do_not_matter,
        model_contract.assert_rows_are_alone,
        model_contract.assert_documents_are_alone,
        model_contract.assert_no_future,
        model_contract.assert_checkpoints_change_nothing,
    ],
)
def test_it_keeps_the_promises_of_a_recurrence(name, promise):
    promise(moved(small(**VARIANTS[name])))


@every_variant
def test_every_parameter_has_a_finite_gradient(name):
    model_contract.assert_learns(moved(small(**VARIANTS[name])), small(**VARIANTS[name]))


@pytest.mark.parametrize("version", PUBLISHED)
def test_the_published_form_depends_on_how_a_text_is_cut(version):
    """Its defect, reproduced: the norm acts at the end of a call; everything else is a causal recurrence."""
    louder = {} if version == "v020" else {"gamma": 0.5}
    model, x = moved(small(**PUBLISHED[version] | {"n_layers": 3, "groups": 4, **louder})), tokens(2)
    whole = model.forward(x)
    first = model.forward(x[:, :9])
    second = model.forward(x[:, 9:], first.cache)
    assert_close(first.logits, whole.logits[:, :9])
    assert mx.abs(second.logits - whole.logits[:, 9:]).max().item() > 1e-2
    model_contract.assert_no_future(model)


@pytest.mark.parametrize("asked", [0.5, 0.9, 0.99, 0.9999])
def test_the_retention_that_is_asked_for_is_reached(asked):
    """By the gate, for every token and head, and by the state: what disturbs it is kept at that rate."""
    model, x, later = small(retention=asked, n_layers=1, attention=()), tokens(1), 12
    np.testing.assert_allclose(model.forward(x).trace["block00/decay"], asked, rtol=1e-5)
    assert kept(model, later) == pytest.approx(asked**later, rel=1e-3)


def test_a_norm_inside_the_recurrence_forgets_more_than_was_asked_for():
    model = small(retention=0.9999, n_layers=1, attention=(), state_norm="token")
    assert kept(model, 12) < 0.99


def kept(model: HybridV3, later: int) -> float:
    """How much of a disturbance of the state in the middle of a text is left `later` tokens on."""
    x = mx.random.randint(0, V, (1, 200 + later), key=mx.random.key(3))
    [[conv, state]] = model.forward(x[:, :200]).cache
    push = mx.random.normal(state.shape, key=mx.random.key(4))
    ends = [model.forward(x[:, 200:], [[conv, S]]).cache[0][1] for S in (state, state + push)]
    return (mx.linalg.norm((ends[1] - ends[0]).flatten()) / mx.linalg.norm(push.flatten())).item()


def test_the_published_start_keeps_a_quarter_per_token_and_its_decay_is_inverted():
    """Called perfect memory, 0.253; and what should remember more forgets more."""
    model = small(**PUBLISHED["v3"] | {"groups": 4})
    trace = model.forward(tokens(2)).trace
    np.testing.assert_allclose(trace["block00/decay"], 0.253, atol=5e-4)
    memory = model.layers[0].rwkv
    u = mx.random.normal((1, 4, 16), key=mx.random.key(0))
    before = memory.log_decay(u)
    memory.base_decay = mx.full((16,), 2.0)  # b = e^-2: meant to forget
    assert (memory.log_decay(u) > before).all().item()
    repaired = small().layers[0].rwkv
    before = repaired.log_decay(u)
    repaired.base_decay = repaired.base_decay + 2.0
    assert (repaired.log_decay(u) < before).all().item()


def test_the_published_gate_opens_all_channels_together():
    """A1d: entries near 1 sum the token's channels, so every gate sees the same number."""
    u = mx.random.normal((64, 16), key=mx.random.key(0))
    spread = {
        init: mx.std(small(**VARIANTS[name]).layers[0].rwkv.gate(u), axis=1).mean().item()
        for init, name in (("senior", "published decay"), ("identity", "repaired"))
    }
    assert spread["senior"] < 0.5 * spread["identity"]


def test_the_state_has_unit_rms_in_every_group():
    model = small(groups=4, state_norm="token")
    state = model.forward(tokens(2)).trace["block00/state"]
    groups = np.array(state).reshape(2, 2, 4, -1)
    np.testing.assert_allclose(np.sqrt((groups**2).mean(-1)), 1, rtol=1e-3)


@pytest.mark.parametrize("state_norm", ["read", "token"])
def test_the_memory_is_the_recurrence_on_paper(state_norm):
    memory = moved(small(state_norm=state_norm)).layers[0].rwkv
    u = mx.random.normal((1, 6, 16), key=mx.random.key(5))
    y, entry, trace = memory(u, [None, None], None, None)
    kernel, x = np.array(memory.conv_weight), np.array(u)[0]
    padded = np.concatenate([np.zeros((3, 16)), x])
    x = x + 0.1 * np.stack([(padded[t : t + 4] * kernel.T).sum(0) for t in range(6)])
    sigma = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    r, k, v, g, c = (
        x @ np.array(w.weight).T
        for w in (memory.receptance, memory.key, memory.value, memory.gate, memory.decay)
    )
    static = np.exp(-np.exp(np.array(memory.base_decay)))
    w = 0.6 * static + 0.4 * np.exp(-np.exp(c + np.array(memory.decay_bias)))
    rho = np.exp(np.log(w).reshape(6, 2, 8).mean(-1))
    S, gain, o = np.array(memory.h0), np.array(memory.norm.weight).reshape(8, 8), []
    for t in range(6):
        kt, vt, rt = (z[t].reshape(2, 8) for z in (k, v, sigma(r)))
        write = np.sqrt(1 - rho[t] ** 2)[:, None, None] * kt[:, :, None] * vt[:, None]
        S = rho[t][:, None, None] * S + write
        groups = S.reshape(2, 4, 16)
        normed = gain * (groups / np.sqrt((groups**2).mean(-1, keepdims=True) + 1e-5)).reshape(2, 8, 8)
        S = normed if state_norm == "token" else S
        o.append((rt[:, None] @ normed).reshape(16) / np.sqrt(8))
    expected = (sigma(g) * np.stack(o)) @ np.array(memory.output.weight).T
    assert_close(y[0], expected, 1e-4)
    assert_close(entry[1][0], S, 1e-4)
    np.testing.assert_allclose(trace["decay"][0], rho, rtol=1e-4)


def test_the_anchor_remembers_across_calls_and_the_published_one_does_not():
    x = tokens(1)
    for anchor, remembers in (("window", True), ("segment", False)):
        model = moved(small(anchor=anchor, gamma=1.0, n_layers=1, attention=(0,)))
        cache = model.forward(x[:, :9]).cache
        apart = mx.abs(model.forward(x[:, 9:], cache).logits - model.forward(x[:, 9:]).logits).max().item()
        assert (apart > 1e-2) == remembers and len(cache[0]) == (3 if remembers else 0)


def test_the_published_form_has_the_published_parameters():
    """A9: 11,084,043 at 269 tokens, of which an h0 for the anchor, 11 `res_weight` and 11 convolutions are
    never read; they are not built.
    """
    config = configure("hybrid_v3", "m", vocab_size=269, context=256, overrides=PUBLISHED["v3"])
    assert count(HybridV3(config)) == 11_084_043 - 8 * 32 * 32 - 11 * (1 + 4 * 256)


@pytest.mark.parametrize(
    "overrides, parameters",
    [
        ({}, 11_034_624),
        ({"attention": ()}, 11_176_448),
        ({"n_layers": 6}, 5_458_944),
        ({"n_layers": 8, "d_model": 320, "n_heads": 10}, 11_397_888),
        (PUBLISHED["v020"], 5_537_792),
    ],
)
def test_the_true_parameters_of_the_matrix_at_97_characters(overrides, parameters):
    config = configure("hybrid_v3", "m", vocab_size=97, context=256, overrides=overrides)
    assert count(HybridV3(config)) == parameters


def test_components_are_named():
    model = small()
    found = {component_of(model, path) for path, _ in tree_flatten(model.parameters())}
    assert found == {"embedding", "rwkv", "attention", "mlp", "norm", "mixer"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"decay": "published"}, 'decay = "published" cannot begin with a chosen retention'),
        ({"groups": 3}, "model.groups 3 does not divide a head's state of 64"),
        ({"retention": 1.0}, "model.retention is between 0 and 1 per token, got 1"),
        ({"attention": (3,)}, "model.attention: no anchor can be at layer 3"),
    ],
)
def test_what_cannot_be_built_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        small(**change)
