"""Runs with [freeze] and [clamp]: what is frozen stays, what is held is held, and resuming keeps both."""

import io
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console

from kssm_mlx import models
from kssm_mlx.checks import suite
from kssm_mlx.checks.training import overfit, resumption
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Intervention, flatten
from kssm_mlx.models.interventions.spec import Observe
from kssm_mlx.runner.load import load
from kssm_mlx.runner.prepare import open_run_context, prepare_context
from kssm_mlx.runner.train import train
from kssm_mlx.runs import records
from kssm_mlx.training.constraints import build_constraints
from kssm_mlx.training.loop import train_loop
from kssm_mlx.training.recipe import parse
from tests.support.check_contexts import measure

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
    return train(options.pop("recipe"), folder, console=console, **{"verify": False, **options})


def built(asked):
    overrides = asked.model.overrides
    return models.build(models.configure("transformer", "xs", vocab_size=16, context=16, overrides=overrides))


def test_what_is_frozen_stays_and_what_is_held_is_held_also_when_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "list_suite", lambda level: ())  # its checks are asked below
    out, asked = io.StringIO(), recipe(**HELD)
    result = run(tmp_path / "run", out, recipe=asked)
    before, after = flatten(built(asked).parameters()), flatten(result.state.params)
    masks = build_constraints(asked, load(tmp_path / "run", verify=False).model.model).masks
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
        held, quiet = build_constraints(asked, model), Console(file=io.StringIO())
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
    held = build_constraints(asked, model)
    out = model.forward(mx.zeros((1, 6), mx.int32), intervention=held.intervention)
    plain = model.forward(mx.zeros((1, 6), mx.int32), intervention=Intervention(acts=(Observe(),)))
    gone = mx.abs(out.trace["block00/units"][..., :16]).max().item() == 0
    assert gone == (mode == "ablate") and mx.array_equal(out.logits, plain.logits) == (mode == "route")


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"clamp": {"site": "S0", "target": 11.0}}, "does nothing: only the final norm reads the stream"),
        ({"freeze": {"units": [4]}}, "the units are 0 to 3"),
        ({"loss": {"eos": {"weight": 1.0, "token": 5000}}}, "loss.eos.token is 5000, but the ids are 0 to"),
        ({"clamp": {"of": 7, "target": 1.0}}, "7 units cannot share the 16 channels of S2 in block 0"),
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
        ({"target": -3.0}, "clamp.target is a size, which is not below 0, got -3.0"),
    ],
)
def test_clamps_that_cannot_be_meant_are_refused(clamp, message):
    with pytest.raises(ConfigError, match=message):
        recipe(clamp=clamp)


# --- Checks of a run that is held: they look at the model that it trains and scores. ----------------------


@pytest.fixture
def held_run(tmp_path, monkeypatch):
    """The context at the end of a run that its checks did not stop, and of which levels they are."""
    few = {"P": ("C4", "C32"), "S": ("C8",)}
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # in the process of C32 as well
    monkeypatch.setattr(suite, "list_suite", lambda level: few.get(level, ()))
    run(tmp_path / "run", recipe=recipe(20, **HELD), verify=True)
    assert [c["id"] for c in records.read_checks(tmp_path / "run")["final"]] == ["C8"]
    return open_run_context(tmp_path / "run")


def test_a_run_that_is_held_passes_its_checks(held_run):
    """And fails them where the intervention or the masks are forgotten: what the checks did before."""
    runs, bare = [held_run] * 2, replace(held_run, intervention=None)
    assert measure("C34", replace(held_run, runs=runs)).verdict == "pass"
    assert ", its cross-entropy is " in measure("C34", replace(held_run, runs=[held_run, bare])).got
    found, without = measure("C32", held_run), measure("C32", bare)
    assert found.verdict == "pass", found.got
    assert without.verdict == "fail" and without.got.startswith("logits differ by")
    found, logged = measure("C17", held_run), [row for row in held_run.history if row["kind"] == "eval"][-1]
    assert abs(found.numbers["loss"] - logged["nats_per_token"]) < 1e-5
    assert abs(measure("C17", bare).numbers["loss"] - logged["nats_per_token"]) > 1e-3
    assert "tensors did not move: " in measure("C8", replace(held_run, masks={})).got


def started(tmp_path, **sections):
    asked = recipe(**sections)
    folder = tmp_path / "run"
    return prepare_context(asked, folder, prepare(asked.data, folder / "data"))


def test_resuming_is_rehearsed_with_what_is_held(tmp_path, monkeypatch):
    loops, real = [], resumption.train_loop
    monkeypatch.setattr(
        resumption, "train_loop", lambda *args, **options: loops.append(options) or real(*args, **options)
    )
    context = started(tmp_path, **HELD)
    assert measure("C33", context).verdict == "pass"
    assert all(o["masks"] is context.masks and o["intervention"] is context.intervention for o in loops)
    assert len(loops) == 2


def test_a_batch_is_learned_under_the_clamp_and_with_a_frozen_head_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(overfit, "STEPS", 130)
    clamped = measure("N18", started(tmp_path / "clamp", clamp=HELD["clamp"]))
    assert clamped.verdict == "pass", clamped.got
    frozen = started(tmp_path / "head", freeze={"units": [3], "head": True})
    found = measure("N18", frozen)
    assert found.verdict == "warn" and "in 130 steps" in found.got
    assert measure("N18", replace(frozen, masks={})).verdict == "pass"


def test_a_batch_that_terms_keep_from_being_learned_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(overfit, "STEPS", 60)
    heavy = {"uncertainty": {"weight": 1e4}}
    found = measure("N18", started(tmp_path, loss=heavy))
    assert found.verdict == "fail" and "in 60 steps" in found.got
