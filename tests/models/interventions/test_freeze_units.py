"""Freeze units: every parameter of a mixer belongs to one unit or to all, and what is frozen stays."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.interventions.freeze_units import free_routing, freeze_masks, make_masks, units_of
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from tests.support.fakes import TinyRecurrent
from tests.support.small_families import FAMILIES, UNITS, awake, tokens

pytestmark = pytest.mark.usefixtures("uncompiled")
every_family = pytest.mark.parametrize("family", FAMILIES)
MIXERS = {"transformer": "attention", "rwkv": "attention", "rwkv7": "attn"}
SHARED = {
    "transformer": {"out.bias"},
    "mamba": set(),
    "mamba2": {"in_proj.weight", "conv1d.weight", "conv1d.bias"},  # B and C of the one group
    "rwkv": {f"time_mix_{name}" for name in ("key", "value", "receptance")},
    "rwkv7": {*(f"x_{c}" for c in "rwkvag"), *(f"{c}_lora.lora.0.weight" for c in "wagv")},
    "kssm": {"in_proj.weight", "conv_weight", "conv_bias", "skip", "out_proj.weight"},
    "kssm, expanded": set(),
    "kssm, expanded spheres": set(),
}


def own(model, family):
    """Parameters of the mixers."""
    prefix = f".{MIXERS.get(family, 'mixer')}."
    return {name: a for name, a in tree_flatten(model.parameters()) if prefix in name}


@every_family
def test_units_and_shared_cover_the_mixers_exactly_once(family):
    model = awake(family)
    units = units_of(model, UNITS)
    mixers = own(model, family)
    count = {name: np.zeros(a.shape, int) for name, a in mixers.items()}
    for part in [p for group in (*units.routing, *units.slack, units.shared) for p in group]:
        np.moveaxis(count[part.path], part.axis, 0)[part.start : part.stop] += 1
    assert {name for name, c in count.items() if not (c == 1).all()} == set()
    prefix = MIXERS.get(family, "mixer") + "."
    assert {p.path.split(prefix)[1] for p in units.shared} == SHARED[family]


@every_family
def test_units_are_equal_and_routing_and_slack_are_both_there(family):
    model = awake(family)
    units = units_of(model, UNITS)
    shapes = {name: a.shape for name, a in own(model, family).items()}

    def size(parts):
        return sum(np.prod(shapes[p.path]) // shapes[p.path][p.axis] * (p.stop - p.start) for p in parts)

    for role in (units.routing, units.slack):
        assert len(role) == UNITS and len({int(size(parts)) for parts in role}) == 1 and size(role[0]) > 0


def test_the_heads_of_a_transformer_are_rows_and_columns():
    """Rows [h d, (h+1) d) of W_q, W_k, W_v and their biases, columns of W_o."""
    units = units_of(awake("transformer"), UNITS)
    rows = lambda parts, name: [(p.start, p.stop) for p in parts if p.path.endswith(name)]  # noqa: E731
    assert rows(units.routing[1], "qkv.weight") == rows(units.routing[1], "qkv.bias") == [(4, 8), (20, 24)]
    assert rows(units.slack[1], "qkv.weight") == rows(units.slack[1], "qkv.bias") == [(36, 40)]
    assert [(p.axis, p.start, p.stop) for p in units.slack[1] if p.path.endswith("out.weight")] == [(1, 4, 8)]


def test_groups_of_b_and_c_belong_to_the_heads_that_read_them():
    shared = units_of(awake("mamba2", n_groups=4), UNITS).shared
    assert shared == ()


@every_family
def test_frozen_slices_are_bit_equal_after_fifty_steps_with_decay_and_the_others_have_moved(family):
    """Source: docs/background/allostasis.md#unit-tests, U6."""
    layers = "n_layers" if family.startswith(("transformer", "kssm")) else "num_hidden_layers"
    model, frozen = awake(family, **{layers: 1}), (1, 2, 3)
    held = freeze_masks(model, frozen, count=UNITS)
    train = Train(batch_size=2, context=6, learning_rate=1e-2, warmup=0, weight_decay=0.5)
    step, state = make_step(model, train, masks=held, compile=False), initial_state(model, train)
    before = {name: np.array(a) for name, a in tree_flatten(state.params)}
    for i in range(50):
        state, _ = step(state, tokens(2, 7, seed=i))
        mx.eval(state)
    after = {name: np.array(a) for name, a in tree_flatten(state.params)}
    for name, mask in held.items():
        still = np.broadcast_to(~np.array(mask), before[name].shape)
        np.testing.assert_array_equal(after[name][still], before[name][still])
    units = units_of(model, UNITS)
    for path, axis, start, stop in (*units.routing[0], *units.slack[0]):
        a, b = (np.moveaxis(x[path], axis, 0)[start:stop] for x in (before, after))
        assert np.mean(a != b) > 0.5, path
    assert all((before[name] != after[name]).any() for name in before if name not in held)


@every_family
def test_shared_parts_are_trained_or_frozen_and_coarse_freezes_the_mixer(family):
    model = awake(family)
    sizes = {
        mode: sum(
            int(np.broadcast_to(~np.array(m), s.shape).sum())
            for n, m in held.items()
            for s in [own(model, family)[n]]
        )
        for mode, held in {
            "train": freeze_masks(model, (0, 1, 2, 3), count=UNITS),
            "freeze": freeze_masks(model, (0, 1, 2, 3), count=UNITS, shared="freeze"),
            "coarse": freeze_masks(model, (), mode="coarse", count=UNITS),
            "shared": make_masks(model, units_of(model, UNITS).shared),
        }.items()
    }
    everything = sum(a.size for a in own(model, family).values())
    assert sizes["freeze"] == sizes["coarse"] == everything == sizes["train"] + sizes["shared"]


def test_the_free_share_of_routing():
    model = awake("transformer")
    assert free_routing(model, {}) == 1
    assert free_routing(model, freeze_masks(model, (1, 2, 3))) == pytest.approx(0.25)
    assert free_routing(model, freeze_masks(model, (), mode="coarse")) == 0


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda: units_of(TinyRecurrent()), "tiny has no freeze units; families that have: kssm"),
        (lambda: units_of(awake("transformer"), 3), "4 heads, channels or groups; 3 units"),
        (lambda: freeze_masks(awake("transformer"), (4,)), r"freeze units \[4\], but the units are 0 to 3"),
    ],
)
def test_what_cannot_be_frozen_is_refused(ask, message):
    with pytest.raises(ConfigError, match=message):
        ask()
