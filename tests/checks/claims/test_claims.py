"""C34, C35 and C36 on real runs: sound claims pass; other units, noise and foreign results do not."""

import io
import json
from dataclasses import replace

import mlx.core as mx
import pytest
from rich.console import Console

import kssm_mlx
from kssm_mlx.checks import suite
from kssm_mlx.runner.prepare import open_run_context
from kssm_mlx.training.recipe import parse
from tests.support.check_contexts import measure
from tests.support.small_runs import sentences

pytestmark = pytest.mark.usefixtures("uncompiled")

STEPS = 12


@pytest.fixture(scope="session")
def make(tmp_path_factory):
    """make("fast", seed) -> the folder of a run of twelve steps, trained once."""
    home, made = tmp_path_factory.mktemp("claims"), {}
    (home / "text.txt").write_text(sentences(600, 0))
    (home / "other.txt").write_text(sentences(600, 1))

    def trained(arm: str, seed: int = 0, text: str = "text", tokenizer: str = "chars", steps: int = STEPS):
        name = f"{arm}-{seed}-{text}-{tokenizer}-{steps}"
        if name not in made:
            made[name] = home / name
            _train(home, made[name], {"fast": 0.01, "slow": 1e-4}[arm], seed, text, tokenizer, steps)
        return open_run_context(made[name])

    return trained


def _train(home, folder, learning_rate, seed, text, tokenizer, steps):
    recipe = parse(
        {
            "data": {"source": f"file:{home / text}.txt", "tokenizer": tokenizer},
            "model": {"size": "xs", "d_model": 8, "n_groups": 8, "mlp_hidden": 8},
            "train": {
                **{"steps": steps, "batch_size": 16, "context": 16, "warmup": 2},
                **{"learning_rate": learning_rate, "seed": seed},
            },
            "eval": {"every": steps, "tokens": 1024, "sample_tokens": 0},
            "save": {"every": steps},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "list_suite", lambda level: ())
        kssm_mlx.train(recipe, folder, console=Console(file=io.StringIO()))


def claim(runs, baseline):
    return replace(runs[0], runs=runs, baseline=baseline)


# --- C34: units, terms, sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_one_kind_compare(make, seed):
    check = measure("C34", claim([make("fast", seed)], [make("slow", seed)]))
    assert (check.verdict, check.got) == ("pass", "2 runs in nats/token, equal in size and tokens")


def test_two_tokenizers_compare_in_bits_per_byte_only(make):
    check = measure("C34", claim([make("fast")], [make("fast", tokenizer="bytes")]))
    assert check.numbers["unit"] == "bits/byte" and check.verdict == "warn"
    assert "parameters" in check.got


def test_two_texts_do_not_compare(make):
    check = measure("C34", claim([make("fast")], [make("fast", text="other")]))
    assert check.verdict == "fail" and "of two texts; evaluate both on one" in check.got


def test_a_regulariser_in_the_loss_is_caught(make):
    """The monostable control: 0.5 * 4.57 nats of barrier in its validation loss."""
    control = make("slow")
    *rows, last = control.history
    assert last["kind"] == "eval"
    totals = replace(control, history=[*rows, {**last, "nats_per_token": last["nats_per_token"] + 2.28}])
    check = measure("C34", claim([make("fast")], [totals]))
    assert check.verdict == "fail" and "its cross-entropy is" in check.got and "leave terms out" in check.fix


def test_twice_the_tokens_are_not_the_same_budget(make):
    check = measure("C34", claim([make("fast")], [make("fast", steps=2 * STEPS)]))
    assert (check.verdict, check.got) == ("warn", "3,072 to 6,144 tokens")


def test_one_run_compares_with_nothing(make):
    check = measure("C34", claim([make("fast")], []))
    assert (check.verdict, check.got) == ("not measurable", "one run compares with nothing")


# --- C35: is the difference one ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_two_arms_of_three_seeds_that_differ(make, seed):
    """Five triples of seeds."""
    fast, slow = ([make(arm, (seed + i) % 5) for i in range(3)] for arm in ("fast", "slow"))
    check = measure("C35", claim(fast, slow))
    assert check.verdict == "pass", check.got
    assert "different: -" in check.got and "over seeds p" in check.got and check.evidence == "3 seeds"


def test_two_seeds_a_side_may_miss_what_three_find(make):
    """The arms are six standard deviations apart; Welch's t of 2 and 2 has one or two degrees of freedom."""
    fast, slow = ([make(arm, seed) for seed in (3, 4)] for arm in ("fast", "slow"))
    check = measure("C35", claim(fast, slow))
    assert check.verdict == "fail" and check.evidence == "2 seeds"
    assert "over seeds no difference found" in check.got and "n 2, would have found" in check.got


def test_one_seed_is_not_an_arm(make):
    check = measure("C35", claim([make("fast")], [make("slow")]))
    assert check.verdict == "warn" and "one seed per arm" in check.got


def test_two_seeds_of_one_arm_do_not_differ_as_arms(make):
    """The same question twice, as a placebo: whatever the windows say, the seeds do not."""
    same = [make("slow", seed) for seed in range(4)]
    check = measure("C35", claim(same[:2], same[2:]))
    assert check.verdict == "fail" and "would have found" in check.got


def test_the_same_run_twice_is_undetermined(make):
    check = measure("C35", claim([make("fast")], [make("fast")]))
    assert check.verdict == "fail" and "undetermined: 64 units without variance" in check.got


def test_few_windows_are_too_few(make, monkeypatch):
    monkeypatch.setattr("kssm_mlx.checks.claims.difference.WINDOWS", 20)
    check = measure("C35", claim([make("fast")], [make("slow")]))
    assert check.verdict == "fail" and "n 20" in check.got and ">= 30 windows" in check.expected


def test_windows_of_other_tokens_do_not_pair(make):
    check = measure("C35", claim([make("fast")], [make("fast", text="other")]))
    assert check.verdict == "not measurable" and "see C34" in check.got


# --- C36: is it the result of this run ---------------------------------------------------------------------


def at_commit(context, commit="0123456789abcdef"):
    """The context as of code at this commit, whatever state the clone is in."""
    return with_manifest(context, environment={**context.manifest["environment"], "commit": commit})


def with_manifest(context, **changes):
    return replace(context, manifest={**context.manifest, **changes})


@pytest.mark.parametrize("seed", range(5))
def test_a_run_is_what_it_recorded(make, seed):
    check = measure("C36", at_commit(make("fast", seed)))
    assert (check.verdict, check.got) == ("pass", "1 of 1 as recorded, commit 0123456789ab")


def test_84k_parameters_for_fewer_are_caught(make):
    check = measure("C36", with_manifest(at_commit(make("fast")), parameters=84_000))
    assert check.verdict == "fail" and "parameters 84,000 recorded, is " in check.got


def test_results_of_another_run_are_caught(make):
    """v1's files kept under kssm_v2: the manifest is of one run, the checkpoint of another."""
    mine, other = make("fast"), make("slow")
    check = measure("C36", replace(at_commit(mine), run_folder=other.run_folder))
    assert check.verdict == "fail" and "recipe and configuration" in check.got


def test_other_token_files_are_caught(make):
    mine = at_commit(make("fast"))
    data = json.loads(json.dumps(mine.manifest["data"]))
    data["files"]["train.bin"]["sha256"] = "f" * 64
    check = measure("C36", with_manifest(mine, data=data))
    assert check.verdict == "fail" and "file train.bin ffffffffffff recorded" in check.got


def test_another_start_is_caught(make):
    mine = at_commit(make("fast"))
    moved = {name: array + mx.array(1e-3) for name, array in mine.initial.items()}
    assert "weights before step 1" in measure("C36", replace(mine, initial=moved)).got


@pytest.mark.parametrize("commit, said", [("abc+changes", "in no commit"), (None, "code of no commit")])
def test_code_that_nobody_can_find_again_warns(make, commit, said):
    check = measure("C36", at_commit(make("fast"), commit))
    assert check.verdict == "warn" and said in check.got


def test_a_run_whose_last_loss_is_no_number_is_not_measurable(make):
    """It ended with a TypeError, where a comparison of the pictures left the run out without a word."""
    broken = make("slow")
    *rows, last = broken.history
    lost = replace(broken, history=[*rows, {**last, "nats_per_token": None, "bits_per_byte": None}])
    check = measure("C34", claim([make("fast")], [lost]))
    assert check.verdict == "not measurable" and "\n" not in check.got
