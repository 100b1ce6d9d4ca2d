"""Runs with [freeze] and [clamp]: what is frozen stays, what is held is held, and resuming keeps both."""

import io

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console

from kssm_mlx import models
from kssm_mlx.data.tokens import prepare
from kssm_mlx.errors import ConfigError
from kssm_mlx.experiments.run import load, train
from kssm_mlx.models.acts import Observe
from kssm_mlx.models.base import Intervention
from kssm_mlx.training.freezing import holding
from kssm_mlx.training.loop import train_loop
from kssm_mlx.training.recipe import parse
from kssm_mlx.training.state import flatten

pytestmark = pytest.mark.usefixtures("uncompiled")


def recipe(steps=4, model=None, schedule="cosine", **sections):
    task = {"length": 16, "vocab": 16, "train_rows": 64, "validation_rows": 32}
    return parse(
        {
            "data": {"source": "task:interleaved", "task": task},
            "model": {"family": "transformer", "size": "xs", "n_layers": 1, "d_model": 16,
                      "tie_embeddings": False, **(model or {})},
            "train": {"steps": steps, "batch_size": 4, "context": 16, "warmup": 0, "weight_decay": 0.5,
                      "schedule": schedule},
            "eval": {"every": 2, "tokens": 256, "sample_tokens": 0},
            "save": {"every": 2},
            **sections,
        }
    )  # fmt: skip


HELD = {
    "freeze": {"units": [1, 2, 3], "head": True},
    "clamp": {"site": "S2", "target": [1.0, 2.0, 3.0, 4.0], "of": 4},
}


def run(folder, out=None, **options):
    console = Console(file=out or io.StringIO(), width=200)
    return train(options.pop("recipe"), folder, verify=False, console=console, **options)


def built(asked):
    overrides = asked.model.overrides
    return models.build(models.configure("transformer", "xs", vocab_size=16, context=16, overrides=overrides))


def test_what_is_frozen_stays_and_what_is_held_is_held_also_when_loaded(tmp_path):
    out, asked = io.StringIO(), recipe(**HELD)
    result = run(tmp_path / "run", out, recipe=asked)
    before, after = flatten(built(asked).parameters()), flatten(result.state.params)
    masks = holding(asked, load(tmp_path / "run", verify=False).model.model).masks
    assert {"head.weight", "norm.weight", "blocks.0.attention.qkv.weight"} <= masks.keys()
    for name, mask in masks.items():
        still = np.broadcast_to(~np.array(mask), before[name].shape)
        np.testing.assert_array_equal(np.array(after[name])[still], np.array(before[name])[still])
        assert still.all() or (np.array(after[name]) != np.array(before[name]))[~still].all()
    loaded, ids = load(tmp_path / "run", verify=False).model, mx.zeros((2, 5), mx.int32)
    trace = loaded.forward(ids).trace
    sizes = mx.linalg.norm(mx.unflatten(trace["block00/units"], -1, (4, -1)), axis=-1)
    np.testing.assert_allclose(sizes, mx.broadcast_to(mx.arange(1.0, 5.0), sizes.shape), rtol=1e-3)
    assert "naive token clamp at S2 to [1.0, 2.0, 3.0, 4.0]" in out.getvalue()


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path):
    """Bit for bit: masks and intervention come from the recipe again."""

    def go(name, steps, **options):
        asked = recipe(steps, schedule="constant", **HELD)
        data = prepare(asked.data, tmp_path / "data")
        model = built(asked)
        held, quiet = holding(asked, model), Console(file=io.StringIO())
        held = {"masks": held.masks, "intervention": held.intervention}
        return train_loop(model, asked, data, tmp_path / name, console=quiet, **held, **options).state.params

    whole = flatten(go("whole", 4))
    go("halves", 2)
    rest = flatten(go("halves", 4, resume=True, allow_config_change=True))
    assert all(mx.array_equal(whole[name], array) for name, array in rest.items())


@pytest.mark.parametrize("mode", ["route", "ablate"])
def test_a_mode_that_acts_is_part_of_the_forward_pass(mode):
    asked = recipe(freeze={"units": [0], "mode": mode})
    model = models.build(models.configure("transformer", "xs", vocab_size=16, context=16), seed=0)
    held = holding(asked, model)
    out = model.forward(mx.zeros((1, 6), mx.int32), intervention=held.intervention)
    plain = model.forward(mx.zeros((1, 6), mx.int32), intervention=Intervention(acts=(Observe(),)))
    gone = mx.abs(out.trace["block00/units"][..., :16]).max().item() == 0
    assert gone == (mode == "ablate") and mx.array_equal(out.logits, plain.logits) == (mode == "route")


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"clamp": {"site": "S0", "target": 11.0}}, "does nothing: only the final norm reads the stream"),
        ({"freeze": {"units": [4]}}, "the units are 0 to 3"),
        ({"freeze": {"head": True}, "model": {"tie_embeddings": True}}, "tied to the embedding"),
    ],
)
def test_what_would_do_nothing_is_refused_before_the_first_step(tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", recipe=recipe(**sections))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "clamp, message",
    [
        ({"kind": "mean-preserving", "target": 1.0}, r'set clamp.scope = "batch"'),
        ({"target": [1.0, 2.0], "of": 4}, "2 targets for clamp.of = 4 units"),
    ],
)
def test_clamps_that_cannot_be_meant_are_refused(clamp, message):
    with pytest.raises(ConfigError, match=message):
        recipe(clamp=clamp)
