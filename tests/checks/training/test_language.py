"""C17, C18, C19 and C4 at the end of a run: a trained model passes, one that counts or loops does not."""

import math
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks import suite
from kssm_mlx.checks.training.language import CAPS, PUBLISHED, ends_in_a_loop
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.training.recipe import parse
from tests.support.fakes import NotANumber, TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")


class Repeating(TinyRecurrent):
    """Says one token for ever."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        return out._replace(logits=30 * (mx.arange(self.args.vocab_size) == 7) + 0 * out.logits)


class Looping(TinyRecurrent):
    """Goes round five tokens."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention, resets=resets, lengths=lengths)
        following = 3 + (tokens + 1) % 5
        return out._replace(
            logits=30 * (mx.arange(self.args.vocab_size) == following[..., None]) + 0 * out.logits
        )


def run(id, context, **changes):
    (check,) = suite.run_suite(replace(context, **changes), [id])
    return check


def fresh(context, kind=TinyRecurrent):
    return kind(vocab_size=context.data.vocab_size, width=32)


def test_a_healthy_run_passes_everything(trained):
    checks = suite.run_suite(trained, "S")
    assert tuple(c.id for c in checks) == suite.list_suite("S") and {c.evidence for c in checks} == {"1 run"}
    assert [(c.id, c.got) for c in checks if not c.ok] == []
    assert [c.id for c in checks if c.verdict == "warn"] in ([], ["C19"])
    assert {"C4", "C8", "C17", "C18", "N18", "C33"} <= {c.id for c in checks if c.verdict == "pass"}


@pytest.mark.parametrize("seed", range(5))
def test_five_healthy_runs_pass(healthy, seed):
    """Weights, batches and samples of their own; only the greedy path may loop (C19)."""
    checks = suite.run_suite(healthy(seed), ("C4", "C8", "C17", "C18", "C19"))
    assert [(c.id, c.got) for c in checks if c.verdict not in ("pass", "warn")] == []
    assert {c.id for c in checks if c.verdict == "warn"} <= {"C19"}


def test_an_untrained_model_is_below_nothing(trained):
    check = run("C17", trained, model=fresh(trained))
    assert check.verdict == "fail"
    assert "bigram" in check.expected


def test_a_model_without_memory_stops_at_the_bigram(trained_memoryless):
    check = run("C17", trained_memoryless)
    assert check.verdict == "fail"
    assert check.numbers["loss"] > check.numbers["ladder"]["bigram"] - 0.1
    assert "sees one token only" in check.fix


def test_of_a_task_the_place_in_the_row_counts_too(trained, tmp_path):
    """Of text it says nothing; what it is good for in rows is tested in tests/metrics/test_ngrams.py."""
    assert "position_bigram" not in run("C17", trained).numbers["ladder"]
    task = {"length": 16, "vocab": 16, "train_rows": 200, "validation_rows": 50}
    recipe = parse({"data": {"source": "task:interleaved", "task": task}, "train": {"context": 16}})
    data = prepare(recipe.data, tmp_path / "data")
    context = replace(trained, recipe=recipe, data=data, history=None, untrained=True)
    found = run("C17", context, model=TinyRecurrent(data.vocab_size))
    rungs = found.numbers["ladder"]
    assert math.isfinite(rungs["position_bigram"]) and rungs["position_bigram"] != rungs["bigram"]
    best = min("bigram", "position_bigram", key=rungs.get)
    assert f"({best} {rungs[best]:.3f} - 0.1)" in found.expected


def test_a_smoke_run_is_asked_for_less(trained_memoryless):
    check = run("C17", trained_memoryless, history=[{"step": 30}])
    assert check.verdict == "pass" and "unigram" in check.expected


def test_worse_than_uniform_names_the_table(trained):
    model = fresh(trained)
    model.head.weight = 30 * model.head.weight
    check = run("C17", trained, model=model)
    assert check.verdict == "fail"
    assert "worse than uniform" in check.got and check.fix.startswith("perplexity above V")


def test_a_model_without_memory_gains_nothing_from_context(trained_memoryless):
    check = run("C18", trained_memoryless)
    assert check.verdict == "fail"
    assert check.got.startswith(("0.000 +-", "-0.000 +-"))


@pytest.mark.parametrize(
    "kind, statistic, bad", [(Repeating, "run", 64), (Repeating, "top share", 1), (Looping, "loops", 8)]
)
def test_degenerate_generation_is_caught(trained, kind, statistic, bad):
    check = run("C19", trained, model=fresh(trained, kind))
    assert check.verdict == "fail"
    assert check.numbers["sampled"][statistic] == bad
    assert statistic in check.got and statistic in check.expected


def test_a_text_beyond_words_moves_the_limits_no_further_than_their_caps(trained):
    """Of one token: the model that says nothing else is as the text is, and degenerate all the same."""
    data = trained.data
    same = replace(data.validation, ids=np.full(4000, 7, np.int32))
    context = replace(trained, data=replace(data, validation=same))
    check = run("C19", context, model=fresh(context, Repeating))
    assert check.verdict == "fail"
    assert check.numbers["limits"] == {**CAPS, "line breaks": PUBLISHED["line breaks"], "loops": 2.0}
    assert check.got.endswith("beyond every limit of distinct-2, run, top share")
    assert run("C19", context).verdict == "warn"


@pytest.mark.parametrize("id", ["C17", "C18"])
def test_nan_is_no_result(trained, id):
    assert run(id, trained, model=fresh(trained, NotANumber)).verdict == "fail"


def test_a_loop_is_a_repeat_of_the_tail_with_a_short_period():
    rng = np.random.default_rng(0)
    prose = rng.integers(0, 50, 64)
    assert not ends_in_a_loop(prose)
    assert ends_in_a_loop(np.r_[prose[:30], np.tile([4, 9, 1, 9, 7, 7, 2, 3], 5)[:34]])
    assert not ends_in_a_loop(np.tile(np.arange(9), 8)[:64])


@pytest.mark.parametrize("absent", ["model", "data"])
def test_what_is_missing_is_said(trained, absent):
    checks = suite.run_suite(replace(trained, **{absent: None}), ["C17", "C18", "C19"])
    assert {(c.verdict, c.got) for c in checks} == {("not measurable", f"needs {absent}, none given")}
