"""C8: weights that stay put and an optimiser without state are noticed."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.checks import suites


def run(context):
    (check,) = suites.run_suite(context, ["C8"])
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
    assert run(replace(trained, initial=broken)).verdict == "fail"


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


def test_before_20_steps_nothing_is_said(trained):
    check = run(replace(trained, history=[{"step": 19}]))
    assert (check.verdict, check.got) == ("not measurable", "19 steps done, 20 needed")
