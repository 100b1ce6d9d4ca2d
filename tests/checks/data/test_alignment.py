"""C30 and C31: a trainer that asks for another token, or for padding, is caught; ours is not."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks.data import alignment
from kssm_mlx.training import evaluation, losses, step
from tests.support.check_contexts import fresh, measure
from tests.support.small_runs import make_data, sentences

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.mark.parametrize("seed, hand_off", [*((s, False) for s in range(5)), (0, True)])
def test_the_trainer_scores_the_next_token(prepared, seed, hand_off):
    """The oracle knows; drawn are only the places of the batches, and none where state is handed on."""
    check = measure("C30", fresh(prepared, seed=seed, hand_off=hand_off))
    assert check.verdict == "pass" and check.numbers["losses"]["training"]["+0"] > 10


def shifted(shift):
    """A trainer that asks for the token `shift` places further on."""
    return lambda tokens: (tokens[:, :-1], mx.roll(tokens, -shift, axis=1)[:, :-1])


@pytest.mark.parametrize("shift", [0, 2, -1])
@pytest.mark.parametrize("module, where", [(step, "training"), (evaluation, "evaluation")])
def test_another_token_than_the_next_is_caught(prepared, monkeypatch, shift, module, where):
    monkeypatch.setattr(module, "split_rows", shifted(shift))
    check = measure("C30", fresh(prepared))
    assert check.verdict == "fail"
    assert check.got.startswith(f"{where}: least loss at shift {shift:+d}")
    assert "inputs are tokens[:, :-1]" in check.fix


@pytest.mark.parametrize("seed", range(5))
def test_text_without_padding_passes(prepared, seed):
    check = measure("C31", fresh(prepared, seed=seed))
    assert check.verdict == "pass" and check.numbers["share"] == 0


def test_padding_that_nobody_marked_is_caught(tmp_path):
    lines = [line.ljust(120, "_") for line in sentences(800, 0).splitlines()]
    check = measure("C31", fresh(make_data(tmp_path, "\n".join(lines))))
    assert check.verdict == "fail" and "% of the targets are padding" in check.got
    assert check.numbers["share"] > 0.6


def test_a_loss_that_counts_padding_is_caught(prepared, monkeypatch):
    def unmasked(logits, targets):
        return losses.cross_entropy(logits, mx.maximum(targets, 0))

    monkeypatch.setattr(alignment, "cross_entropy", unmasked)
    check = measure("C31", fresh(prepared))
    assert check.verdict == "fail" and check.got.startswith("padding changes the loss by")


def test_a_mean_over_padding_too_is_caught(prepared, monkeypatch):
    def all_counted(logits, targets):
        return losses.cross_entropy(logits, targets)[0], mx.array(targets.size)

    monkeypatch.setattr(alignment, "cross_entropy", all_counted)
    check = measure("C31", fresh(prepared))
    assert check.verdict == "fail" and check.got == "padding changes the loss by 5.5e-01"
    assert check.numbers["change"] == pytest.approx(35 / 64, rel=1e-3)  # the share of padding in the rows


def test_marked_padding_counts_as_padding_and_unscored_inputs_do_not():
    row = np.arange(40)
    assert alignment._share_of_padding(np.array([row, np.where(row < 20, row, -1)])) == 0.25
    assert alignment._share_of_padding(np.array([np.where(row < 20, row, -2 - row)])) == 0
    assert alignment._share_of_padding(np.array([np.where(row < 20, row, 7)])) == 0.5


def test_a_short_row_is_padded_when_half_of_it_is():
    """The modular task: four tokens that mean something, eleven that do not."""
    row = np.array([[40, 3, 41, 43, *[42] * 11]])
    assert alignment._share_of_padding(row) == 11 / 15
    assert alignment._share_of_padding(np.array([[40, 3, 41, 43, 7, 1, 2, 4, 5, *[42] * 6]])) == 0


def test_without_data_it_says_so(prepared):
    check = measure("C31", replace(fresh(prepared), data=None))
    assert (check.verdict, check.got) == ("not measurable", "needs data, none given")
