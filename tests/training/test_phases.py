"""Phases: when one ends, what each trains on, and that a run killed in any of them goes on exactly."""

import json
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console

from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import flatten
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.curriculum.phases import Place, advance
from kssm_mlx.training.curriculum.sections import Phase, parse_condition
from kssm_mlx.training.loop import Callbacks, train_loop
from kssm_mlx.training.recipe import load, parse
from tests.support.fakes import TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")
STEPS = 24
TASK = {"train_length": 8, "test_lengths": [12], "test_rows": 8, "train_rows": 200, "validation_rows": 60}


def recipe(**sections):
    """A word problem of S3 to length 8 in 24 steps, evaluated at every third."""
    table = {
        "data": {"source": "task:word-problem", "task": TASK},
        "train": {"steps": STEPS, "batch_size": 8, "context": 8, "warmup": 2, "learning_rate": 0.01},
        "eval": {"every": 3, "tokens": 256, "sample_tokens": 0},
        "save": {"every": 2, "keep": 100},
    }
    return parse({**table, **sections})


PHASES = [
    {"until": "accuracy_last >= 0.2", "at_most": 7, "context": 2},
    {"until": 12, "context": 4, "learning_rate": 0.003},
    {"at_most": 5, "trains": ["head"]},
    {"task": {"alphabet": "generators"}},
]


class Stop(Exception):
    """The plug is pulled."""


def run(folder, recipe, *, stop=None, resume=False):
    """The rows of the run and its result; stop: the step after which it is killed."""
    data = prepare(recipe.data, folder / "data")

    def on_step(step, row):
        if step == stop:
            raise Stop

    model = TinyRecurrent(data.vocab_size, width=8, blocks=1, seed=6)
    hooks, silent = Callbacks(on_step=on_step), Console(quiet=True)
    return train_loop(model, recipe, data, folder, resume=resume, hooks=hooks, console=silent)


def rows(folder, *kinds):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timings = ("tokens_per_second", "seconds")
    return [
        {name: value for name, value in row.items() if name not in timings}
        for row in found
        if row["kind"] in kinds
    ]


def last(folder):
    return checkpoint.load_latest(folder / "checkpoints").snapshot


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run through four phases that nothing disturbed. Read only."""
    folder = tmp_path_factory.mktemp("phases") / "run"
    run(folder, recipe(phase=PHASES))
    return folder


def bounds(folder) -> list[int]:
    """The last step of each phase but the last."""
    return [a["step"] for a, b in pairwise(rows(folder, "train")) if a["phase"] != b["phase"]]


# When a phase ends


def test_a_phase_ends_at_its_step_at_its_condition_or_when_it_took_too_long():
    phases = [Phase(until="accuracy_last >= 0.9", at_most=10), Phase(until=20), Phase()]
    first = Place()
    assert advance(phases, first, 5, None) == first
    assert advance(phases, first, 5, {"accuracy_last": 0.89}) == first
    assert advance(phases, first, 5, {"accuracy_last": None}) == first  # was not finite
    assert advance(phases, first, 5, {"accuracy_last": 0.9}) == Place(1, 5)
    assert advance(phases, first, 10, None) == Place(1, 10)
    second = Place(1, 19)
    assert advance(phases, second, 19, {"accuracy_last": 1.0}) == second
    assert advance(phases, second, 20, None) == Place(2, 20)
    assert advance(phases, Place(2, 20), 10**6, {"accuracy_last": 1.0}) == Place(2, 20)
    assert advance(phases, Place(3, 30), 31, None) == Place(3, 30)


@pytest.mark.parametrize(
    "text, number, holds",
    [
        ("accuracy >= .5", 0.5, True),
        ("accuracy>=0.5", 0.49, False),
        ("nats_per_token <= 1e-1", 0.1, True),
        ("nats_per_token <= 0.1", 0.2, False),
    ],
)
def test_conditions_are_read(text, number, holds):
    assert parse_condition(text).holds(number) is holds


def test_the_phases_of_a_run_are_those_of_its_evaluations(whole):
    first, second, third = bounds(whole)
    reached = [row for row in rows(whole, "eval") if row["phase"] == 1 and row["accuracy_last"] >= 0.2]
    assert first == (reached[0]["step"] if reached else 7)
    assert (second, third) == (12, 17)
    assert [row["context"] for row in rows(whole, "train") if row["step"] in (1, 12, 17, 24)] == [2, 4, 8, 8]
    assert [row["phase"] for row in rows(whole, "train") if row["step"] in (1, 12, 17, 24)] == [1, 2, 3, 4]
    assert "phase 4 of 4: rows of 8 tokens" in rows(whole, "event")[-1]["message"]


def test_tokens_rates_and_rows_are_those_of_the_phase(whole):
    for row in rows(whole, "train"):
        assert row["tokens"] == 8 * row["context"]
    lr = {row["step"]: row["lr"] for row in rows(whole, "train")}
    plain = {row["step"]: row["lr"] for row in rows(whole, "train") if row["phase"] != 2}
    assert lr[12] < 0.4 * lr[13] and all(lr[s] > 0 for s in plain)


def test_what_a_phase_does_not_train_stays_bit_for_bit(whole):
    _, second, third = bounds(whole)
    states = checkpoint_states(whole)
    began, ended = (states[step] for step in (second, third - third % 2))
    moved = {name for name in began if not np.array_equal(began[name], ended[name])}
    assert moved and all(name.startswith("head") for name in moved)


def checkpoint_states(folder):
    return {
        checkpoint.load(path).step: {
            name: np.array(array) for name, array in checkpoint.load(path).tensors["model"].items()
        }
        for path in sorted((folder / "checkpoints").glob("step_*"))
    }


def test_the_best_is_of_the_latest_phase(whole):
    best, found = last(whole).state["best"], rows(whole, "eval")
    assert best["phase"] == 4
    assert best["nats_per_token"] == min(r["nats_per_token"] for r in found if r["phase"] == 4)


def test_options_of_a_phase_change_its_rows(whole):
    letters = {name: np.fromfile(whole / "data" / name / "train.bin", np.uint16) for name in ("", "phase-4")}
    assert len(np.unique(letters[""])) == 6 and len(np.unique(letters["phase-4"])) == 3


# Exact resumption


@pytest.mark.parametrize("kind", ["middle", "change"])
@pytest.mark.parametrize("phase", [0, 1, 2])
def test_killed_in_a_phase_or_at_its_end_and_resumed_is_the_same_run(tmp_path, whole, phase, kind):
    """In the middle, and after the first step of the next phase: the change may or may not be saved."""
    ends = bounds(whole)
    stop = ends[phase] + (1 if kind == "change" else -1)
    with pytest.raises(Stop):
        run(tmp_path, recipe(phase=PHASES), stop=stop)
    done = run(tmp_path, recipe(phase=PHASES), resume=True)
    assert 0 < done.started_at < stop
    assert_same(tmp_path, whole)


def test_killed_between_a_change_and_its_checkpoint_is_the_same_run(tmp_path, whole, monkeypatch):
    """The phase ended, its event is written, and the checkpoint that knows of it never was."""
    end, save = bounds(whole)[1], checkpoint.save

    def fail(folder, snapshot, **options):
        if snapshot.step == end:
            raise Stop
        return save(folder, snapshot, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", fail)
        with pytest.raises(Stop):
            run(tmp_path, recipe(phase=PHASES))
    assert run(tmp_path, recipe(phase=PHASES), resume=True).started_at < end
    assert_same(tmp_path, whole)


def assert_same(folder, whole):
    mine, other = last(folder), last(whole)
    assert mine.step == other.step and mine.state["phase"] == other.state["phase"]
    for stem, tensors in other.tensors.items():
        for name, array in tensors.items():
            assert np.array(mine.tensors[stem][name]).tobytes() == np.array(array).tobytes(), name
    assert rows(folder, "train", "eval") == rows(whole, "train", "eval")
    told = [[r for r in rows(at, "event") if r["event"] == "phase"] for at in (folder, whole)]
    assert told[0] == told[1]
    assert mine.state["best"] == other.state["best"]


def test_a_run_ends_with_its_last_phase_and_stays_ended(tmp_path, capsys):
    short = recipe(phase=[{"until": 5, "context": 4}, {"until": "accuracy >= 0.0"}])
    done = run(tmp_path, short)
    assert done.step == 6 and last(tmp_path).step == 6
    again = run(tmp_path, short, resume=True)
    assert again.was_finished and again.step == 6


def test_a_run_without_phases_has_no_columns_of_them(tmp_path):
    done = run(tmp_path, recipe())
    assert "phase" not in done.evaluation and "phase" not in rows(tmp_path, "train")[0]
    identity = last(tmp_path).state["identity"]["config"]
    assert not [key for key in identity if key.startswith(("phase", "curriculum"))]
    assert {"accuracy_last", "accuracy@12", "accuracy_last@12"} <= done.evaluation.keys()


def test_lengths_are_scored_as_often_as_asked_and_at_the_end(tmp_path):
    often = {"every": 3, "lengths_every": 9, "tokens": 256, "sample_tokens": 0}
    run(tmp_path, recipe(eval=often, train={**recipe().train.model_dump(), "steps": 14}))
    assert [row["step"] for row in rows(tmp_path, "eval") if "accuracy@12" in row] == [9, 14]


# The short form


def test_a_curriculum_is_phases():
    made = recipe(curriculum={"lengths": [2, 4, 8], "accuracy": 0.9, "at_most": 50})
    rule = {"until": "accuracy_last >= 0.9", "at_most": 50}
    assert made.phases == (Phase(context=2, **rule), Phase(context=4, **rule), Phase(context=8))
    assert parse(made.model_dump()) == made


def test_a_file_has_tables_of_phases(tmp_path):
    (tmp_path / "r.toml").write_text('[[phase]]\nuntil = 10\ncontext = 16\n\n[[phase]]\ntrains = ["head"]\n')
    assert load(tmp_path / "r.toml").phases == (Phase(until=10, context=16), Phase(trains=["head"]))


SHORT = {"until": 5, "context": 4}


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"phase": [{}, SHORT]}, "phase 1 of 2 never ends: give it until or at_most"),
        ({"phase": [{"until": 9}, {"until": 9}, {}]}, r"must rise, got until = \[9, 9\]"),
        ({"phase": [{"until": 0}, {}]}, "phase.0.until: a step from 1, got 0"),
        ({"phase": [{"until": "accuracy > 1"}, {}]}, "'accuracy > 1' is no condition; expected"),
        ({"phase": [{"until": "acuracy >= 1"}, {}]}, "waits for 'acuracy'.*did you mean 'accuracy'"),
        ({"phase": [{"until": "accuracy_tail >= 1"}, {}]}, "waits for 'accuracy_tail'"),
        ({"phase": [{"contxt": 3}]}, "unknown key 'phase.0.contxt'; did you mean 'context'"),
        ({"phase": [{"context": 16}]}, "context 16, more than train.context = 8"),
        ({"phase": [{"task": {"train_length": 4}, "context": 6}]}, "context 6, its rows 4 targets"),
        ({"phase": [{"task": {"grp": "S3"}}]}, "unknown key 'data.task.grp'"),
        ({"phase": [{"freeze": {"mode": "ablate"}}]}, "mode 'ablate' changes what the model computes"),
        ({"phase": [SHORT, {}], "curriculum": {"lengths": [2, 8]}}, "leave one of them out"),
        ({"phase": [SHORT, {}], "monitor": {"patience": {}}}, r"\[monitor.patience\] reads one curve"),
        ({"curriculum": {"lengths": [4, 2]}}, r"lengths rise, from 2 on, got \[4, 2\]"),
        ({"curriculum": {"lengths": [2, 64]}}, "context 64, more than train.context = 8"),
        ({"eval": {"every": 2, "lengths_every": 3}}, "lengths_every 3 is no multiple of every 2"),
    ],
)
def test_phases_that_cannot_be_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**sections)


def test_rows_that_cannot_be_cut_are_not():
    table = {"data": {"source": "task:copy"}, "train": {"context": 32}, "phase": [SHORT, {}]}
    with pytest.raises(ConfigError, match="context 4, its rows 32 targets, which cannot be cut"):
        parse(table)


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"data": {}, "phase": [{"task": {"n": 1}}]}, "options of a task, and the data is text"),
        ({"train": {"hand_off": True}, "phase": [SHORT, {}]}, "hand_off reads tracks of one context"),
    ],
)
def test_phases_of_text_that_cannot_be_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        parse(sections)


@pytest.mark.parametrize(
    "phase, message",
    [
        ({"task": {"group": "C4"}}, "a phase has a vocabulary of 4, the run one of 6"),
        ({"trains": ["haed"]}, "has no component 'haed'; it has .*head"),
    ],
)
def test_phases_that_do_not_fit_the_run_are_refused_before_the_first_step(tmp_path, phase, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, recipe(phase=[SHORT, phase]))
    assert not (tmp_path / "checkpoints").exists()


def test_the_frozen_of_the_recipe_stays_frozen_in_every_phase(tmp_path):
    folder, made = tmp_path, recipe(phase=[{"until": 4, "trains": ["head"]}, {}])
    data = prepare(made.data, folder / "data")
    model = TinyRecurrent(data.vocab_size, width=8, blocks=1, seed=6)
    before = {n: np.array(a) for n, a in flatten(model.parameters()).items()}
    held = next(name for name in before if name.startswith("head"))
    masks = {held: mx.zeros((1,) * before[held].ndim, mx.bool_)}
    train_loop(model, made, data, folder, console=Console(quiet=True), masks=masks)
    after = flatten(model.parameters())
    assert np.array_equal(after[held], before[held])
    assert any(not np.array_equal(after[n], before[n]) for n in before)
