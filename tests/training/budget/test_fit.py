"""Each guard fires where a lower bound does not fit, and only there; and what it proposes would fit."""

from __future__ import annotations

import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.training.budget import fit
from kssm_mlx.training.budget.machines import (
    MACHINES,
    find_machine,
    least_step_seconds,
    most_tokens_per_second,
)
from kssm_mlx.training.budget.measured import StepCost
from kssm_mlx.training.budget.sums import Sums
from kssm_mlx.training.recipe import parse

SUMS = Sums(
    trained=10**6,
    frozen=0,
    weights=4 * 10**6,
    optimizer=8 * 10**6,
    gradients=4 * 10**6,
    checkpoint=12 * 10**6,
)
COSTS = [StepCost(1, 20e6, 0.1), StepCost(2, 30e6, 0.2)]  # 10 MB and 10 MB a row


def recipe(model=None, **train):
    table = {"train": {"batch_size": 16, "steps": 1000, **train}, "save": {"every": 100, "keep": 3}}
    return parse({**table, **({"model": model} if model else {})})


def test_memory_is_refused_just_above_the_sums_and_not_below():
    fit.refuse_beyond_memory(SUMS, recipe(), SUMS.least)
    with pytest.raises(ConfigError) as refused:
        fit.refuse_beyond_memory(SUMS, recipe(), SUMS.least - 1)
    message = str(refused.value)
    assert "at least 16 MB" in message and "there is 16 MB" in message and "a smaller model.size" in message
    assert "\n" not in message and refused.value.exit_code == 2


def test_a_base_model_that_is_trained_whole_is_pointed_to_adapters():
    with pytest.raises(ConfigError, match=r'model\.train="lora"'):
        fit.refuse_beyond_memory(SUMS, recipe({"base": "some/model", "train": "full"}), 10 * 10**6)
    with pytest.raises(ConfigError, match="another base model"):
        fit.refuse_beyond_memory(SUMS, recipe({"base": "some/model", "train": "lora"}), 10 * 10**6)


# A base model of 10 million weights in bf16, adapters of 100,000 beside it.
BASE = Sums(
    10**5, 10**7, weights=204 * 10**5, optimizer=8 * 10**5, gradients=4 * 10**5, checkpoint=12 * 10**5
)


def test_a_frozen_base_model_that_does_not_fit_is_pointed_to_few_bits():
    """In 4 bits it takes 5.6 MB: with what is trained 7.2 MB."""
    lora, frozen = ({"base": "some/model", "train": train} for train in ("lora", "frozen"))
    with pytest.raises(ConfigError, match=r'fit: model.train="qlora" .* and model.quantize=\{ bits = 4 \}'):
        fit.refuse_beyond_memory(BASE, recipe(lora), 21 * 10**6)
    with pytest.raises(
        ConfigError, match=r"fit: let kssm convert write it in 4 bits on a machine that holds it"
    ):
        fit.refuse_beyond_memory(BASE, recipe(frozen), 10 * 10**6)
    for model in (lora, {**lora, "train": "qlora", "quantize": {"bits": 4}}):
        with pytest.raises(ConfigError, match="take another base model"):
            fit.refuse_beyond_memory(BASE, recipe(model), 7 * 10**6)
    costs = [StepCost(1, 30e6, 0.1), StepCost(2, 31e6, 0.1)]
    assert "perhaps model.train" in fit.warn_beyond_memory(BASE, recipe(lora), costs, 20 * 10**6, False)
    assert "a shorter train.context" in fit.warn_beyond_memory(BASE, recipe(lora), costs, 10**7, False)


def test_a_base_model_is_refused_before_it_is_read():
    fit.refuse_large_base("some/model", 20 * 10**6, 10**7, 20 * 10**6)
    with pytest.raises(
        ConfigError, match=r"some/model takes 20 MB .* 4 bits it takes about 5.62 MB: let kssm conv"
    ):
        fit.refuse_large_base("some/model", 20 * 10**6, 10**7, 20 * 10**6 - 1)
    with pytest.raises(ConfigError, match="take a smaller one, or a machine with more memory"):
        fit.refuse_large_base("some/model", 20 * 10**6, 10**7, 5 * 10**6)


def test_disk_is_refused_just_above_what_is_kept():
    fit.refuse_beyond_disk(SUMS, recipe(), 3 * SUMS.checkpoint)
    with pytest.raises(ConfigError, match=r"3 checkpoints of 12 MB, 36 MB on disk.*36 MB; .*save.keep=2"):
        fit.refuse_beyond_disk(SUMS, recipe(), 3 * SUMS.checkpoint - 1)
    with pytest.raises(ConfigError, match="another disk, with --out"):
        fit.refuse_beyond_disk(SUMS, recipe(), SUMS.checkpoint - 1)


def test_checkpoints_that_are_there_already_count_as_free(tmp_path):
    before = fit.there_is_disk(tmp_path / "run" / "not there yet")
    step = tmp_path / "run" / "checkpoints" / "step_1"
    step.mkdir(parents=True)
    (step / "model.safetensors").write_bytes(b"0" * 10**6)
    assert before > 0
    assert fit.there_is_disk(tmp_path / "run") - fit.there_is_disk(tmp_path) >= 0.5 * 10**6


@pytest.mark.parametrize(
    ("there", "proposal"),
    [
        (170e6, ""),
        (169e6, "train.accumulation=2, micro-batches of 8 rows"),
        (89e6, "train.accumulation=4, micro-batches of 4 rows"),
        (20e6, "train.accumulation=16, micro-batches of 1 rows"),
        (19e6, "perhaps train.checkpoint_blocks=true"),
    ],
)
def test_a_peak_is_warned_of_with_the_first_cut_that_fits(there, proposal):
    warning = fit.warn_beyond_memory(SUMS, recipe(), COSTS, int(there), True)
    assert (warning == "") == (proposal == "") and proposal in warning and "\n" not in warning


def test_without_anything_to_cut_it_says_so():
    small = recipe(checkpoint_blocks=True)
    assert "a shorter train.context" in fit.warn_beyond_memory(SUMS, small, COSTS, 10**7, True)
    whole = recipe({"base": "some/model", "train": "full"})
    assert 'model.train="lora"' in fit.warn_beyond_memory(SUMS, whole, COSTS, 10**7, False)


def test_bytes_are_shown_in_powers_of_ten():
    shown = [fit.show_bytes(n) for n in (12, 12_345, 12_345_678, 5.5e9, 1.27e12, 5e15)]
    assert shown == ["0.012 kB", "12.3 kB", "12.3 MB", "5.5 GB", "1.27 TB", "5,000 TB"]


def test_machines_by_name():
    assert find_machine(" m2  ultra 64 GB").bandwidth == 800 * 10**9
    assert find_machine("M1 Max 32").memory == 32 * 2**30
    assert find_machine("M3 Ultra 512").memory == 512 * 2**30
    with pytest.raises(ConfigError, match=r"no machine 'M2 Ultra 65'; did you mean 'M2 Ultra 64'\?"):
        find_machine("M2 Ultra 65")
    assert len(MACHINES) == 17


def test_bounds_by_bandwidth_by_hand():
    machine = find_machine("M2 Ultra 192")
    assert least_step_seconds(machine, 4 * 10**9, 10**9, 8 * 10**9) == pytest.approx(0.05)
    assert most_tokens_per_second(machine, 5_540_000_000, 21_000_000) == pytest.approx(143.3, abs=0.1)
