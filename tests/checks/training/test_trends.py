"""C37 and C38: noise is not learning, and a buffer is not an answer to the input."""

import math
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.training.recipe import parse
from tests.support.check_contexts import fresh, fresh_kssm, measure
from tests.support.fakes import TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")


def history(losses, steps=500):
    recipe = parse({"train": {"steps": steps, "warmup": 0}})
    rows = [{"kind": "train", "step": i + 1, "loss": float(loss)} for i, loss in enumerate(losses)]
    return Context(recipe=recipe, history=rows)


def noise(seed, mean=3.4, n=500):
    return np.random.default_rng(seed).normal(mean, 0.8, n)


@pytest.mark.parametrize("seed", range(5))
def test_a_falling_loss_is_learning(seed):
    check = measure("C37", history(noise(seed) - 0.004 * np.arange(500)))
    assert check.verdict == "pass" and check.numbers["t"] < -3


def test_noise_is_called_learning_less_than_once_in_a_hundred():
    verdicts = [measure("C37", history(noise(100 + i))).verdict for i in range(200)]
    assert verdicts.count("pass") <= 2 and verdicts.count("fail") >= 198


def test_attempt_4_was_not_learning():
    """Batch 1 on i.i.d. samples: +0.06 nats over 500 steps."""
    check = measure("C37", history(noise(0) + 0.06 * np.arange(500) / 500))
    assert check.verdict == "fail" and "500 steps" in check.got and "nothing was learned" in check.fix


def test_a_loss_that_climbs_fails():
    assert measure("C37", history(noise(1) + 0.05 * np.arange(500))).verdict == "fail"


def test_what_was_learned_during_the_warm_up_was_learned():
    """A task that is solved by step 50, and noise of its last hundredth ever since."""
    solved = np.concatenate([1.8 * 0.9 ** np.arange(50), 0.01 * np.abs(noise(2, mean=0.0, n=450))])
    late = parse({"train": {"steps": 500, "warmup": 50}})
    solving = replace(history(solved), recipe=late)
    assert measure("C37", solving).verdict == "fail"  # nobody knows what a guess has
    six = SimpleNamespace(vocab_size=6)
    check = measure("C37", replace(solving, data=six))
    assert check.verdict == "pass" and check.numbers["t"] > -3 and "0.0039 of the loss left" in check.got
    unsolved = np.concatenate([solved[:50], 0.1 * np.abs(noise(2, mean=0.0, n=450))])
    assert measure("C37", replace(history(unsolved), recipe=late, data=six)).verdict == "fail"
    always_small = 0.01 * np.abs(noise(2, mean=0.0))
    assert measure("C37", replace(history(always_small), recipe=late, data=six)).verdict == "fail"
    for place in (0, 250, 499):
        lost = solved.copy()
        lost[place] = math.nan
        assert measure("C37", replace(history(lost), recipe=late, data=six)).verdict == "fail"
    # A fresh model that is sure of nonsense, and learns no more than to guess.
    absurd = np.concatenate([2000 * 0.8 ** np.arange(50), np.abs(noise(2, mean=1.8, n=450))])
    assert measure("C37", replace(history(absurd), recipe=late, data=six)).verdict == "fail"


def test_before_the_last_checkpoint_it_warns(tmp_path):
    flat = noise(1)
    assert measure("C37", history(flat[:100])).verdict == "warn"
    assert measure("C37", replace(history(flat), run_folder=tmp_path)).verdict == "warn"
    (tmp_path / "checkpoints" / "step_00000500").mkdir(parents=True)
    assert measure("C37", replace(history(flat), run_folder=tmp_path)).verdict == "fail"
    assert measure("C37", history(flat[:20])).verdict == "not measurable"


def in_phases(*parts):
    """A history whose losses follow each other in phases."""
    context = history(np.concatenate(parts), steps=sum(map(len, parts)))
    numbers = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts]).tolist()
    for row, phase in zip(context.history, numbers, strict=True):
        row["phase"] = phase
    return context


def test_rows_that_become_harder_hide_no_learning():
    """Each phase falls, and begins higher than the one before it ended."""
    phases = [noise(i)[:120] - 0.01 * np.arange(120) + 2 * i for i in range(3)]
    assert measure("C37", history(np.concatenate(phases), steps=360)).verdict == "fail"
    check = measure("C37", in_phases(*phases))
    assert check.verdict == "pass" and check.expected.startswith("t < -3.3,")


def test_rows_that_become_easier_are_no_learning():
    phases = [noise(i)[:120] - 2 * i for i in range(3)]
    assert measure("C37", history(np.concatenate(phases), steps=360)).verdict == "pass"
    assert measure("C37", in_phases(*phases)).verdict == "fail"


def test_phases_that_are_all_short_say_nothing():
    check = measure("C37", in_phases(*[noise(i)[:20] for i in range(4)]))
    assert check.verdict == "not measurable" and "no phase has 30 steps" in check.got


def test_a_loss_that_is_not_finite_fails():
    context = history(noise(2))
    context.history[40]["loss"] = None
    assert measure("C37", context).verdict == "fail"


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_so_it_does_in_any_phase(broken):
    phases = [noise(i)[:120] - 0.01 * np.arange(120) for i in range(3)]
    assert measure("C37", in_phases(*phases)).verdict == "pass"
    phases[broken][60] = math.nan
    assert measure("C37", in_phases(*phases)).verdict == "fail"


def untrained(context):
    return replace(context, untrained=True)


@pytest.mark.parametrize("seed", range(5))
def test_r_of_a_kssm_answers_to_its_input(prepared, seed):
    check = measure("C38", untrained(fresh_kssm(prepared, seed)))
    assert check.verdict == "pass", check.got


class Buffered(TinyRecurrent):
    """An R that drifts from call to call, like the phase core in a hook."""

    buffer = 0.5

    def forward(self, tokens, *args, **kwargs):
        out = super().forward(tokens, *args, **kwargs)
        self.buffer = 0.98 * self.buffer + 0.05 * out.logits.mean().item()
        return out._replace(trace={"block00/R": mx.full((*tokens.shape, 1), self.buffer)})


@pytest.mark.parametrize("seed", range(5))
def test_an_r_that_is_carried_from_call_to_call_is_caught(prepared, seed):
    check = measure("C38", untrained(fresh(prepared, Buffered, seed)))
    assert check.verdict == "fail" and "beyond that of the loss (block 0)" in check.got
    assert "kept between calls" in check.fix


def test_without_r_it_says_so(prepared):
    context = untrained(fresh(prepared))
    assert measure("C38", context).got == 'the trace has no "block00/R"'
    assert measure("C38", replace(context, data=None)).got == "needs data, none given"


class Broken(TinyRecurrent):
    """R of NaN in block 1; in block 0 one that never changes."""

    def forward(self, tokens, *args, **kwargs):
        R = mx.full((*tokens.shape, 1), 0.5)
        return super().forward(tokens)._replace(trace={"block00/R": R, "block01/R": R * float("nan")})


def test_an_r_that_is_not_a_number_is_no_r_that_stays_the_same(prepared):
    check = measure("C38", untrained(fresh(prepared, Broken)))
    assert (check.verdict, check.got) == ("fail", "not a number: R of block 1")
