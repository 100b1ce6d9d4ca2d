"""C7 of terms: a term that nothing can lower is one of the dead. C8: weights that stay put are noticed."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import pytest

from kssm_mlx import models
from kssm_mlx.checks import suite
from kssm_mlx.training.recipe import parse
from tests.support.check_contexts import fresh, fresh_kssm, measure


def run(context):
    (check,) = suite.run_suite(context, ["C8"])
    return check


def now(context):
    return dict(nn.utils.tree_flatten(context.model.parameters()))


def test_a_run_that_moved_everything_passes(trained):
    assert run(trained).verdict == "pass"


def test_a_frozen_tensor_is_named(trained):
    frozen = {"blocks.0.mix.weight": now(trained)["blocks.0.mix.weight"]}
    check = run(replace(trained, initial={**trained.initial, **frozen}))
    assert check.verdict == "fail"
    assert check.got == "1 of 14 tensors did not move: blocks.0.mix.weight"


def test_weights_of_nan_have_not_moved(trained):
    broken = {n: p * float("nan") for n, p in trained.initial.items()}
    check = run(replace(trained, initial=broken))
    assert check.verdict == "fail" and check.got.startswith("14 of 14 tensors did not move: ")


def test_a_renamed_tensor_is_named(trained):
    initial = {n.replace("head", "tail"): p for n, p in trained.initial.items()}
    assert "head.bias" in run(replace(trained, initial=initial)).got


def test_an_empty_optimiser_is_caught(trained, tmp_path):
    folder = tmp_path / "checkpoints" / "step_00000080"
    folder.mkdir(parents=True)
    moments = {n: mx.zeros_like(p) for n, p in now(trained).items()}
    mx.save_safetensors(str(folder / "optimizer.safetensors"), moments)
    check = run(replace(trained, run_folder=tmp_path))
    assert check.verdict == "fail" and check.got.endswith("optimiser state empty")
    mx.save_safetensors(str(folder / "optimizer.safetensors"), {**moments, "m": mx.ones(3)})
    assert run(replace(trained, run_folder=tmp_path)).verdict == "pass"


def test_what_is_frozen_is_to_stay_and_the_rest_to_move(trained):
    masks = {"head.bias": mx.zeros((1,), mx.bool_)}
    frozen = {"head.bias": now(trained)["head.bias"]}
    context = replace(trained, initial={**trained.initial, **frozen}, masks=masks)
    assert run(context).verdict == "pass"
    assert run(replace(context, masks={})).got == "1 of 14 tensors did not move: head.bias"


@pytest.mark.parametrize("rows", [0, 3])
def test_a_frozen_part_that_moved_is_caught(trained, rows):
    """As weight decay moves it: all of a tensor, or the rows from the third on."""
    bias = now(trained)["head.bias"]
    check = run(replace(trained, masks={"head.bias": mx.arange(bias.size) < rows}))
    assert (check.verdict, check.got) == ("fail", "frozen, and moved all the same: head.bias")


def test_before_20_steps_nothing_is_said(trained):
    check = run(replace(trained, history=[{"step": 19}]))
    assert (check.verdict, check.got) == ("not measurable", "19 steps done, 20 needed")


# --- C7: what gradients reach -----------------------------------------------------------------------------


def with_terms(context, **terms):
    return replace(context, recipe=parse({**context.recipe.model_dump(), "loss": terms}))


@pytest.mark.parametrize("seed", range(5))
def test_terms_with_a_gradient_pass(prepared, uncompiled, seed):
    terms = {"uncertainty": {"weight": 0.1}, "presence": {"weight": 0.05}, "coherence": {"weight": 0.1}}
    check = measure("C7", with_terms(fresh_kssm(prepared, seed), **terms))
    assert check.verdict == "pass" and check.numbers["terms"].keys() == terms.keys(), check.got


@pytest.mark.parametrize(
    "name, options",
    [("legacy_uncertainty", {}), ("legacy_tonal", {"limit": 0.0}), ("legacy_eos", {"token": 3})],
)
def test_a_term_that_is_a_number_is_caught(prepared, uncompiled, name, options):
    """U, tone and EOS of the precursors, as they were."""
    check = measure("C7", with_terms(fresh_kssm(prepared), **{name: {"weight": 0.5, **options}}))
    assert check.verdict == "fail" and check.got == f"no gradient in term {name}"
    assert "a Python float" in check.fix


def test_a_term_that_is_not_at_work_is_told(prepared, uncompiled):
    check = measure("C7", with_terms(fresh_kssm(prepared), tonal={"weight": 0.5, "limit": 1.0}))
    assert check.verdict == "warn" and check.got.endswith("; term tonal is 0")


@pytest.mark.parametrize("family", ["transformer", "rwkv", "rwkv7", "mamba", "mamba2"])
def test_healthy_families_have_no_dead_row(prepared, uncompiled, family):
    """Positions past the text, keys' biases and channels that forget at once are not dead."""
    context = fresh(prepared)
    config = models.configure(family, "xs", vocab_size=context.data.vocab_size, context=128)
    check = measure("C7", replace(context, model=models.build(config), config=config))
    assert check.verdict == "pass", check.got


@pytest.mark.parametrize(
    "family, dead",
    [
        ("kssm_v1", ["blocks.0.coupling"]),
        ("kssm_v2", ["aggregate.weight", "aggregate.bias"]),
        ("kssm_v3", ["blocks.0.bank.to_parameters.weight (row block 1 of 10)"]),
    ],
)
def test_the_dead_parameters_of_the_precursors_are_named(prepared, uncompiled, family, dead):
    context = fresh(prepared)
    config = models.configure(family, "xs", vocab_size=context.data.vocab_size, context=128)
    check = measure("C7", replace(context, model=models.build(config), config=config))
    assert check.verdict == "fail" and check.numbers["dead"][: len(dead)] == dead


def test_a_group_of_learning_rate_0_is_to_stay(trained):
    """The documented way to hold one part: its tensors are no fault, any other that stays is one."""
    still = {name: array for name, array in now(trained).items() if name.startswith("embed")}
    held = replace(trained, initial={**trained.initial, **still})
    assert run(held).verdict == "fail"
    table = trained.recipe.model_dump(exclude_unset=True)
    table["train"] = {**table.get("train", {}), "groups": {"embedding": {"learning_rate": 0.0}}}
    recipe = parse(table)
    assert run(replace(held, recipe=recipe)).verdict == "pass"
    assert run(replace(held, recipe=recipe, initial=now(trained))).verdict == "fail"
