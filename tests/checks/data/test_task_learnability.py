"""G1 to G11: tasks that cannot be learned, scores that mean nothing, rows on both sides, and logs of runs."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.model.memory_reach import needed_lags
from kssm_mlx.checks.training import capacity
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tasks import TASKS, make_task
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.models import build, configure
from kssm_mlx.models.base import Output
from kssm_mlx.training.recipe import parse
from tests.support.check_contexts import measure
from tests.support.fakes import Memoryless, TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")
SMALL = {"train_rows": 300, "validation_rows": 200}
STREAMS = {"length": 32, "vocab": 64, **SMALL}
BEFORE = ("G1", "G2", "G5", "G8")


def context(folder, name="interleaved", kind=None, seed=0, **task) -> Context:
    """The rows of a task, and a fresh model of `kind` for them."""
    length = make_task(name, task).length
    asked = {"source": f"task:{name}", "task": task, "seed": seed}
    recipe = parse({"data": asked, "train": {"context": length, "batch_size": 8}, "eval": {"tokens": 1600}})
    data = prepare(recipe.data, folder / f"{name}{seed}")

    def fresh(seed: int):
        return kind(data.vocab_size, seed=seed)

    model = kind and fresh(seed)
    return Context(
        model, model and model.args, recipe, data, data.tokenizer, seed=seed, builder=kind and fresh
    )


def rewritten(ctx: Context, **files) -> Context:
    """The same with other bytes in the token files; validation_scored=... is validation.scored.bin."""
    for name, array in files.items():
        path = ctx.data.folder / f"{name.replace('_', '.')}.bin"
        path.write_bytes(np.asarray(array).astype(np.uint8 if "scored" in name else np.uint16).tobytes())
    return replace(ctx, data=TokenData.open(ctx.data.folder))


def log(*rows, steps=1000) -> list[dict]:
    common = {"kind": "eval", "step": steps, "tokens": 25600, "se": 0.01}
    return [{"kind": "train", "step": steps}, *({**common, **row} for row in rows)]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_as_it_comes_can_be_learned(name, tmp_path):
    ctx = context(tmp_path, name, **SMALL)
    assert [(id, c.got) for id in BEFORE if (c := measure(id, ctx)).verdict != "pass"] == []


def test_sound_rows_pass_for_five_seeds(tmp_path):
    found = [measure(id, context(tmp_path, seed=s, **STREAMS)) for s in range(5) for id in BEFORE]
    assert [(c.id, c.got) for c in found if c.verdict != "pass"] == []


def test_the_broken_streams_have_no_room_and_no_rule(tmp_path):
    ctx = context(tmp_path, broken=True, **STREAMS)
    room, rule = measure("G1", ctx), measure("G2", ctx)
    assert room.verdict == "fail" and room.got.startswith("ceiling 0.0156, chance 0.0156")
    assert (
        rule.verdict == "fail"
        and rule.got.startswith("gain 0.00")
        and "every token is drawn anew" in rule.fix
    )
    assert measure("G2", context(tmp_path / "sound", **STREAMS)).numbers["gain"] > 0.5


def test_rows_that_do_not_follow_their_rule_are_caught(tmp_path):
    ctx = context(tmp_path, **STREAMS)
    mixed = np.random.default_rng(0).permutation(np.asarray(ctx.data.validation.ids))
    check = measure("G2", rewritten(ctx, validation=mixed))
    assert check.verdict == "fail" and "of 0.75" in check.got and "do not follow their rule" in check.fix


def test_a_sum_scored_at_its_padding_is_caught(tmp_path):
    check = measure("G5", context(tmp_path, "modular", p=13, whole_row=True))
    assert check.verdict == "fail" and "13 of 15 places known beforehand" in check.got
    assert "padding" in check.fix


def test_one_row_repeated_is_known_beforehand(tmp_path):
    ctx = context(tmp_path, "toy", **SMALL)
    row = np.asarray(ctx.data.validation.ids)[: ctx.data.validation.row]
    check = measure("G5", rewritten(ctx, validation=np.tile(row, SMALL["validation_rows"])))
    assert check.verdict == "fail" and "31 of 31" in check.got


def test_rows_on_both_sides_and_rows_of_another_seed_are_caught(tmp_path):
    ctx = context(tmp_path, **STREAMS)
    train = np.asarray(ctx.data.train.ids)[: ctx.data.validation.ids.size]
    check = measure("G8", rewritten(ctx, validation=train))
    assert check.verdict == "fail" and "200 of 200 rows are also in training" in check.got
    other = np.asarray(context(tmp_path / "other", seed=1, **STREAMS).data.validation.ids)
    check = measure("G8", rewritten(ctx, validation=other))
    assert check.verdict == "fail" and check.got == "64 of the first 64 rows are not those of the seed"


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_how_far_back_it_asks(name):
    task = make_task(name)
    assert all(0 <= lag < task.length for lag in needed_lags(task))


def test_labels_are_checked_as_labels(tmp_path):
    """Files whose labels are not those of the rule, or always the same at one place."""
    ctx = context(tmp_path, "parity", train_length=12, **SMALL)
    wrong = np.array(ctx.data.validation.labels).astype(int).reshape(-1, 13)
    wrong[:, 4:] ^= np.random.default_rng(0).integers(0, 2, (len(wrong), 1))
    check = measure("G2", rewritten(ctx, validation_labels=wrong.ravel()))
    assert check.verdict == "fail" and "the rows do not follow their rule" in check.fix
    wrong[:, 7] = 1
    check = measure("G5", rewritten(ctx, validation_labels=wrong.ravel()))
    assert check.verdict == "fail" and check.numbers["known"] == [7]


def test_a_task_that_asks_at_its_end_is_read_to_it(tmp_path):
    """C16 reads 128 tokens of a text; there a copy of 160 has no target yet."""
    ctx = context(tmp_path, "mad-copy", TinyRecurrent, train_length=160, **SMALL)
    check = measure("C16", ctx)
    assert check.verdict == "pass" and "nan" not in check.got


def test_permuted_labels_teach_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "SHUFFLED_STEPS", 20)
    ctx = context(tmp_path, "word-problem", TinyRecurrent, train_length=12, **SMALL)
    assert measure("G4", ctx).verdict == "pass"
    assert measure("G10", ctx).verdict == "pass"


def test_an_evaluation_in_a_phase_is_held_against_the_bound_of_its_rows(tmp_path):
    """Three targets of a stream have a ceiling of chance: what is fine on 32 would be a leak there."""
    options = {"vocab": 64, "length": 32, **SMALL}
    phases = [{"task": {"length": 3}, "until": 10}, {}]
    data = {"source": "task:interleaved", "task": options}
    recipe = parse({"data": data, "train": {"context": 32}, "phase": phases})
    ctx = replace(context(tmp_path, **STREAMS), recipe=recipe)
    row = {"accuracy": 0.7, "nats_per_token": 4.5}
    early, late = (log({**row, "phase": phase, "context": n}) for phase, n in ((1, 3), (2, 32)))
    assert measure("G6", replace(ctx, history=early)).verdict == "fail"
    assert measure("G6", replace(ctx, history=late)).verdict == "pass"


def test_the_lags_of_two_streams():
    assert needed_lags(make_task("interleaved")) == [3, 5, 7, 9, 11, 13]


@pytest.mark.parametrize("seed", range(5))
def test_a_recurrence_reaches_back(seed, tmp_path):
    assert measure("G7", context(tmp_path, kind=TinyRecurrent, seed=seed, **STREAMS)).verdict == "pass"


def test_a_model_without_memory_does_not(tmp_path):
    check = measure("G7", context(tmp_path, kind=Memoryless, **STREAMS))
    assert check.verdict == "fail" and check.got == "no effect at lag 3, 5, 7, 9, 11, 13"


def test_what_begins_at_zero_is_woken(tmp_path):
    """The mixers of a fresh RWKV-7 put out nothing: that says nothing of what it could carry."""
    ctx = context(tmp_path, **STREAMS)
    model = build(configure("rwkv7", "xs", vocab_size=ctx.data.vocab_size))
    assert measure("G7", replace(ctx, model=model)).verdict == "pass"


class Seeing(TinyRecurrent):
    """Reads the token it is to predict, as a model without a causal mask can."""

    def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
        out = super().forward(tokens, cache, intervention)
        ahead = mx.concatenate([tokens[:, 1:], tokens[:, -1:]], axis=1)
        return Output(12.0 * (mx.arange(self.args.vocab_size) == ahead[..., None]), out.cache, {})


@pytest.mark.parametrize("kind, verdict", [(Seeing, "fail"), (TinyRecurrent, "pass")])
def test_a_model_above_the_ceiling_sees_its_targets(kind, verdict, tmp_path):
    ctx = replace(context(tmp_path, kind=kind, **STREAMS), history=[{"kind": "train", "step": 1000}])
    check = measure("G6", ctx)
    assert check.verdict == verdict and ("standard errors beyond" in check.got)


@pytest.mark.parametrize(
    "row, verdict, got",
    [
        ({"accuracy": 0.9999, "nats_per_token": 1.2}, "fail", "accuracy +"),
        ({"accuracy": 0.75, "nats_per_token": 0.3}, "fail", "loss +"),
        ({"accuracy": 0.752, "nats_per_token": 1.21}, "pass", ""),
        ({"accuracy": 0.5, "nats_per_token": None, "se": None}, "pass", ""),
    ],
)
def test_a_log_beyond_the_bounds(row, verdict, got, tmp_path):
    ctx = replace(context(tmp_path, **STREAMS), history=log(row))
    check = measure("G6", ctx)
    assert check.verdict == verdict and check.got.startswith(got)


@pytest.mark.parametrize(
    "accuracy, steps, verdict", [(0.02, 1000, "fail"), (0.02, 100, "warn"), (0.2, 100, "pass")]
)
def test_a_score_at_chance(accuracy, steps, verdict, tmp_path):
    row = {"accuracy": accuracy, "nats_per_token": 4.0, "tokens": 3000}
    check = measure("G3", replace(context(tmp_path, **STREAMS), history=log(row, steps=steps)))
    assert check.verdict == verdict and "chance 0.0156" in check.got


@pytest.mark.parametrize(
    "skill, steps, verdict", [(0.02, 500, "fail"), (0.5, 500, "pass"), (0.02, 400, None)]
)
def test_learning_that_has_not_begun(skill, steps, verdict, tmp_path):
    row = {"accuracy": 0.1, "nats_per_token": 3.0, "skill_tail": skill}
    check = measure("G11", replace(context(tmp_path, **STREAMS), history=log(row, steps=steps)))
    assert check.verdict == (verdict or "not measurable")
    assert verdict != "fail" or (check.got == "tail skill 0.020 after 500 steps" and "G7" in check.fix)


def test_shuffled_targets(tmp_path):
    """A sound score stays at chance for a causal model; padding that is scored does not."""
    small = {"p": 13, "length": 5}
    assert measure("G4", context(tmp_path, "modular", TinyRecurrent, **small)).verdict == "pass"
    check = measure("G4", context(tmp_path / "whole", "modular", TinyRecurrent, whole_row=True, **small))
    assert check.verdict == "fail" and "G5" in check.fix
    check = measure("G4", context(tmp_path / "seen", "modular", Seeing, **small))
    assert check.verdict == "fail" and check.got.startswith("accuracy 1.0000")


class Frozen(TinyRecurrent):
    """Nothing in it is trained."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.freeze(keys=["weight"])


def test_rows_by_heart(tmp_path, monkeypatch):
    small = {"length": 6, "vocab": 8, "low": 1, "high": 2, "train_rows": 64, "validation_rows": 20}
    assert measure("G9", context(tmp_path, "toy", TinyRecurrent, **small)).verdict == "pass"
    monkeypatch.setattr(capacity, "HEART_STEPS", 50)
    check = measure("G9", context(tmp_path / "frozen", "toy", Frozen, **small))
    assert check.verdict == "fail" and "after 50 steps" in check.got


def test_what_a_fixed_lag_gets(tmp_path):
    """The last place of two streams is solved by lags alone, noise between the tokens takes that away."""
    streams = {"vocab": 256, "length": 40, "train_rows": 1600, "validation_rows": 150}
    plain = context(tmp_path, **streams)
    row = plain.data.train.row
    last = {
        f"{side}_scored": np.tile(np.arange(row) == row - 1, split.ids.size // row)
        for side, split in (("train", plain.data.train), ("validation", plain.data.validation))
    }
    check = measure("G10", rewritten(plain, **last))
    assert check.verdict == "fail" and "solves this" in check.fix
    assert measure("G10", context(tmp_path / "jitter", jitter=0.2, **streams)).verdict == "pass"


def test_a_copy_is_a_fixed_lag(tmp_path):
    check = measure("G10", context(tmp_path, "copy", symbols=6, **SMALL))
    assert check.verdict == "fail" and "oracle 1.000, fixed lags 1.000" in check.got


@pytest.mark.parametrize("id", ["G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G10", "G11"])
def test_text_is_not_judged(id, trained):
    check = measure(id, trained)
    assert check.verdict == "not measurable" and "C29" in check.got
