"""What a verdict rests on is written on it; a metric of what was learned is refused where nothing was."""

from dataclasses import replace
from pathlib import Path

import pytest

from kssm_mlx.checks import suite
from kssm_mlx.checks.core import evidence
from kssm_mlx.checks.core.registry import REGISTRY, Context, Definition, check, verdict
from kssm_mlx.training.recipe import parse
from tests.support.fakes import TinyRecurrent
from tests.support.small_oscillators import small

STEPS = [{"kind": "train", "step": 30}]


@pytest.fixture
def learned(monkeypatch):
    """X1, a check of what was learned, for one test."""

    def run(ctx):
        return verdict("X1", True, "much", "something")

    definition = Definition("X1", "S", "it has learned", "here", run, needs_training=True)
    monkeypatch.setitem(REGISTRY, "X1", definition)
    return "X1"


def context(**fields):
    model = TinyRecurrent()
    return Context(model=model, config=model.args, **fields)


def asked(id, ctx):
    (found,) = suite.run_suite(ctx, [id])
    return found


def test_an_untrained_model_is_refused_unless_asked_for_and_labelled(learned):
    refused = asked(learned, context())
    assert refused.verdict == "not measurable" and "the model is untrained" in refused.got
    looked_at = asked(learned, context(untrained=True))
    assert (looked_at.verdict, looked_at.evidence) == ("pass", "untrained")


@pytest.mark.parametrize("id", ["C22", "C24", "C38"])
def test_what_r_says_is_a_matter_of_training(id):
    assert "the model is untrained" in asked(id, context()).got


@pytest.mark.parametrize("id", ["C20", "C22", "C24"])
def test_random_ids_are_no_text_to_say_what_was_learned(id):
    model = small("kssm", 8)
    found = asked(id, Context(model, model.args, history=STEPS))
    assert (found.verdict, found.evidence) == ("not measurable", "1 run")
    assert found.got == "needs text, and random ids are none; --untrained measures it all the same"


def test_what_random_ids_may_stand_for_says_that_they_did(prepared):
    data, recipe = prepared
    graft = TinyRecurrent(vocab_size=data.vocab_size)
    graft.host = TinyRecurrent(vocab_size=data.vocab_size)
    assert asked("C12", Context(graft, graft.args)).evidence == "untrained, on random ids"
    assert asked("C12", Context(graft, graft.args, recipe, data)).evidence == "untrained"


@pytest.mark.parametrize("trained", [{"history": STEPS}, {"base_digest": "d" * 64}])
def test_a_trained_model_is_evidence_of_one_run(learned, trained):
    found = asked(learned, context(**trained))
    assert (found.verdict, found.evidence) == ("pass", "1 run")


def test_a_check_of_data_has_no_evidence_of_a_model(prepared):
    data, recipe = prepared
    assert asked("C14", Context(data=data, recipe=recipe)).evidence == ""


def a_run(folder: str, seed: int, question: str = "", **train) -> Context:
    recipe = parse({"about": {"question": question}, "train": {"seed": seed, **train}})
    return Context(recipe=recipe, run_folder=Path(folder))


def test_arms_are_runs_that_differ_in_seed_and_words_alone():
    runs = [a_run("a", 0, "one?"), a_run("b", 1, "two?"), a_run("x/a", 0, steps=7), a_run("c", 0)]
    named = {
        arm: [run.run_folder.name for run in group] for arm, group in evidence.group_contexts(runs).items()
    }
    assert named == {"a": ["a", "b", "c"], "x/a": ["a"]}


def test_a_claim_rests_on_the_seeds_of_its_weakest_arm():
    three = [a_run("a", 0), a_run("b", 1), a_run("c", 2)]
    assert evidence.describe_evidence(Context(runs=three)) == "3 seeds"
    assert evidence.describe_evidence(Context(runs=three, baseline=[a_run("d", 0, steps=7)])) == "1 run"
    assert evidence.describe_evidence(Context(runs=[a_run("a", 0), a_run("b", 0)])) == "1 run", (
        "a seed counts once"
    )


@pytest.mark.parametrize(
    "options, message",
    [({"id": "c20"}, "capitals and a number"), ({"level": "Q"}, "no level Q; levels are")],
)
def test_a_check_that_could_never_run_is_refused_when_it_is_written(options, message):
    with pytest.raises(ValueError, match=message):
        check(**{"id": "X2", "level": "P", "title": "t", "source": "s", **options})


def test_evidence_and_place_are_in_the_json():
    found = replace(verdict("C6", True, "0", "0"), evidence="3 seeds", ran_on="its own weights")
    assert found.to_json().keys() == {
        *("id", "title", "level", "verdict", "got", "expected", "fix", "numbers", "seconds"),
        *("evidence", "ran_on", "ok"),
    }
    assert found.to_json()["evidence"] == "3 seeds"
