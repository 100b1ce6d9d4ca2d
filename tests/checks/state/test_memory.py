"""D11, D12, D18, D20, D21, N14: what is kept, what is let go, and what a disturbed state still says."""

from dataclasses import replace

import mlx.core as mx
import pytest

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.state import robustness
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.training.recipe import parse
from tests.checks.state.test_activity import as_kind
from tests.support import broken_states as broken
from tests.support.check_contexts import measure
from tests.support.fakes import TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")
OF_PASSKEYS = ("D11", "D12", "D20")
DISTURBED = ("D18", "D21", "N14")


@pytest.fixture(scope="module")
def passkeys(tmp_path_factory):
    """Rows of the task, to be read by a model of any kind."""
    task = {"vocab": 20, "digits": 2, "distances": [4, 8, 16], "train_rows": 50, "validation_rows": 200}
    recipe = parse({"data": {"source": "task:passkey", "task": task}, "train": {"context": 21}})
    data = prepare(recipe.data, tmp_path_factory.mktemp("passkey") / "data")

    def read_by(kind: type, seed: int = 0) -> Context:
        model = kind(data.vocab_size, seed=seed)
        history = [{"kind": "train", "step": 1000}]
        return Context(model, model.args, recipe, data, data.tokenizer, history=history, seed=seed)

    return read_by


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_knows_the_rule_passes(passkeys, seed):
    found = [measure(id, passkeys(broken.Knowing, seed)) for id in OF_PASSKEYS]
    assert [(c.id, c.got) for c in found if c.verdict != "pass"] == []


@pytest.mark.parametrize(
    "id, kind, verdict, got",
    [
        ("D11", broken.NoMemory, "fail", "accuracy by distance 4: "),
        ("D11", broken.ShortMemory, "warn", "4: 100%, 8: "),
        ("D12", broken.NoMemory, "fail", "the key moves the answer by 0 nats"),
        ("D12", broken.Distracted, "fail", "η "),
        ("D20", broken.NoMemory, "fail", "τ 0 tokens, η 0.00"),
    ],
)
def test_what_is_forgotten_or_never_chosen_is_caught(passkeys, id, kind, verdict, got):
    check = measure(id, passkeys(kind))
    assert check.verdict == verdict and got in check.got


def test_tau_lies_between_what_is_kept_and_what_is_not(passkeys):
    assert 4 < measure("D11", passkeys(broken.ShortMemory)).numbers["tau"] < 8


@pytest.mark.parametrize("seed", range(5))
def test_a_fresh_recurrence_is_at_chance(passkeys, seed):
    assert measure("D11", passkeys(TinyRecurrent, seed)).verdict == "fail"


@pytest.mark.parametrize("id", OF_PASSKEYS)
def test_of_text_nobody_knows_what_matters(trained, id):
    assert "of which is known what matters" in measure(id, trained).got


@pytest.mark.parametrize("seed", range(5))
def test_a_trained_recurrence_survives(trained, seed):
    found = [measure(id, replace(trained, seed=seed)) for id in DISTURBED]
    assert [(c.id, c.got) for c in found if c.verdict != "pass"] == []


@pytest.mark.parametrize(
    "id, kind, verdict, fix",
    [
        ("D18", broken.Offset, "fail", "a tenth of the state decides everything"),
        ("D18", broken.Ignoring, "warn", "nothing reads the state"),
        ("D21", broken.Offset, "fail", "one direction of the state"),
        ("N14", broken.Biased, "fail", "reset between documents"),
        ("N14", broken.Creeping, "warn", "reset between documents"),
    ],
)
def test_a_fragile_state_is_caught(trained, id, kind, verdict, fix):
    check = measure(id, as_kind(trained, kind))
    assert check.verdict == verdict and fix in check.fix, check.got


def test_a_solved_task_is_judged(trained, monkeypatch):
    """Its loss is 0, which the rise was divided by."""
    losses = iter([0.0, 0.005])
    monkeypatch.setattr(robustness, "_loss", lambda *_: mx.array(next(losses)))
    check = measure("D18", trained)
    assert check.verdict == "warn" and check.numbers["rise"] > 0.1, check.got


def test_the_worst_push_is_worse_than_noise(trained):
    numbers = measure("D21", trained).numbers
    assert numbers["attacked"] > numbers["noisy"] and numbers["attacked"] > numbers["clean"]


def test_rows_of_a_task_are_no_sessions(passkeys):
    assert "do not go on" in measure("N14", passkeys(TinyRecurrent)).got
