"""The smoke form of every shipped recipe runs to its end and is evaluated; one of each kind, and in the slow
tests every one, goes on where it was cut off.
"""

import io
import json
import math
import shutil
from functools import cache, partial
from types import SimpleNamespace

import mlx.core as mx
import pytest
from rich.console import Console

import kssm_mlx
from kssm_mlx.checks import suite
from kssm_mlx.cli.train import disable_verification
from kssm_mlx.errors import CheckFailed, ConfigError
from kssm_mlx.runner import base_models
from kssm_mlx.runner.evaluate import evaluate
from kssm_mlx.training.recipe import list_shipped, load, parse

RECIPE = """
about = { question = "Runs?", minutes = 5, expected = { metric = "loss", value = 0.5, tolerance = 1 } }
data = { source = "pydoc", tokenizer = "chars" }
model = { family = "kssm_v1", size = "s" }
train = { steps = 900, learning_rate = 3e-3, warmup = 2 }
waive = { C1 = "memoryless", C7 = "as published" }

[smoke]
"train.steps" = 4
model.size = "xs"
train = { batch_size = 4, context = 16 }
eval = { every = 2, tokens = 256, sample_tokens = 0 }
save = { every = 2 }
"""

ALL = suite.list_suite
# They answer every check, in the slow tests; the default recipe does where it is compiled.
EACH_FAMILY = {
    *("default", "hybrid-v3", "kssm-v1", "kssm-v2", "kssm-v3", "hybrid-v4-hy", "phase-mamba", "phase-rwkv"),
    *("baseline-mamba", "baseline-rwkv", "baseline-gpt2", "modular", "interleaved-fixed"),
}


# What counting says of the data: of equal data it says the same.
BY_COUNTING = {"C15", "C29"}
# What a model decides before it has learned: of equal models it is the same.
OF_THE_MODEL = {"C1", "C2", "C3", "C5", "C6", "C7", "C23", "D13"}


def few(name: str, level: str) -> tuple[str, ...]:
    """Without C39, which races for a lock and knows no recipe; a tiny base passes neither C10 nor C11. Equal
    data are counted once, equal models asked once, and the first of a kind is opened in a new process (C32).
    """
    if level == "S":
        return ("C4", "C8")
    answered = set() if is_first(name, kind_of_model) else {"C32"}
    if not is_first(name, what_is_counted):
        answered |= BY_COUNTING
    if not is_first(name, what_is_modelled):
        answered |= OF_THE_MODEL
    left_out = {"C10", "C11", "C39"} | answered - load(name).waive.keys()
    return tuple(id for id in ALL(level) if id not in left_out)


def is_first(name: str, key) -> bool:
    """Whether no shipped recipe before this one has the same key."""
    return name == next(other for other in list_shipped() if key(other) == key(name))


@cache
def kind_of_model(name: str) -> tuple:
    model = load(name).model
    return getattr(model, "family", None), getattr(model, "base", None), getattr(model, "graft", None)


SECTIONS = ("loss", "monitor", "control", "freeze", "clamp", "noise", "phase", "curriculum")


@cache
def what_goes_on(name: str) -> tuple:
    """What a checkpoint holds beside arrays: by the sections of a recipe, and by a carried or mean state."""
    recipe = load(name, smoke=True)
    kind, train = kind_of_model(name), recipe.train
    sections = {section for section in SECTIONS if getattr(recipe, section)}
    return kind, sections, train.hand_off, train.ema is None, train.optimizer, recipe.data.source


@cache
def what_is_modelled(name: str) -> tuple:
    recipe = load(name, smoke=True)
    return recipe.model, recipe.loss


@cache
def what_is_counted(name: str) -> tuple:
    recipe = load(name, smoke=True)
    return recipe.data, recipe.train.context, recipe.train.seed


@pytest.fixture
def small(tmp_path):
    """A recipe in whose smoke form keys are dotted, nested and quoted."""
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def trained(recipe, folder, **options):
    out = io.StringIO()
    result = kssm_mlx.train(recipe, folder, console=Console(file=out, width=200), **options)
    return result, out.getvalue()


def latest(folder):
    """The folder of the last checkpoint, and its tensors."""
    at = folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text().strip()
    arrays = {path.name: mx.load(str(path)) for path in sorted(at.glob("*.safetensors"))}
    mx.eval(arrays)
    return at, arrays


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def tiny_bases(shared_cache, monkeypatch):
    """Base models in their smoke form, which nobody could verify: those of the slow tests are whole. Each is
    trained once, by the first recipe that asks.
    """
    monkeypatch.setenv("KSSM_CACHE", str(shared_cache))
    monkeypatch.setattr(base_models, "_verify", lambda source, home: None)
    monkeypatch.setattr(base_models, "recipes", SimpleNamespace(load=partial(load, smoke=True)))


@pytest.mark.parametrize("name", list_shipped())
def test_it_runs_to_the_end_resumes_and_evaluates(
    name, tmp_path, monkeypatch, capsys, uncompiled, tiny_bases
):
    monkeypatch.setattr(suite, "list_suite", partial(few, name))
    goes_on = is_first(name, what_goes_on)
    assert_it_runs(name, tmp_path, monkeypatch, verify_base=False, goes_on=goes_on)
    capsys.readouterr()  # a base model that is trained first says so


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EACH_FAMILY))
def test_it_answers_every_check(name, tmp_path, monkeypatch, capsys, uncompiled):
    assert_it_runs(name, tmp_path, monkeypatch)
    capsys.readouterr()


# Each costs minutes of g++ on Linux. The one that `make run` takes stands for them, in test_on_a_terminal.
@pytest.mark.slow
@pytest.mark.parametrize("name", list_shipped())
def test_so_it_does_compiled(name, tmp_path, monkeypatch, capsys):
    assert_it_runs(name, tmp_path, monkeypatch)
    capsys.readouterr()


def assert_it_runs(name, tmp_path, monkeypatch, *, verify_base=True, goes_on=True):
    recipe, folder = load(name, smoke=True), tmp_path / "run"
    if not verify_base:
        recipe = disable_verification(recipe)
    result, _ = trained(recipe, folder)
    assert result.step == recipe.train.steps and math.isfinite(result.evaluation["nats_per_token"])
    assert_it_was_checked(recipe, folder)
    if goes_on:
        assert_it_goes_on(recipe, folder, monkeypatch)
    numbers = evaluate(kssm_mlx.load(folder, verify=verify_base), str(folder))
    assert numbers["nats_per_token"] > 0 and numbers["tokens"] >= 64


def assert_it_was_checked(recipe, folder):
    found = json.loads((folder / "checks.json").read_text())
    assert found.keys() >= {"preflight", "during", "final"}
    needless = [c["id"] for c in found["preflight"] if c["id"] in recipe.waive and c["verdict"] == "pass"]
    assert not needless, "waived, and would have passed"


def assert_it_goes_on(recipe, folder, monkeypatch):
    """From the checkpoint before its last, to the same bits."""
    last, unbroken = latest(folder)
    shutil.rmtree(last)
    monkeypatch.setattr(suite, "list_suite", lambda level: ())  # asked and answered above
    result, _ = trained(recipe, folder, resume=True)
    assert (result.started_at, result.step) == (recipe.save.every, recipe.train.steps)
    _, again = latest(folder)
    for file in unbroken:
        assert again[file].keys() == unbroken[file].keys()
        assert all(mx.array_equal(again[file][n], unbroken[file][n]) for n in unbroken[file]), file


def test_the_smoke_form_changes_what_its_table_says(small):
    full, smoke = load(small), load(small, smoke=True)
    assert (full.train.steps, full.model.size, full.smoke) == (900, "s", {})
    assert (smoke.train.steps, smoke.model.size, smoke.train.context) == (4, "xs", 16)
    assert smoke.train.learning_rate == full.train.learning_rate
    assert smoke.about.question == full.about.question
    assert full.about.expected and smoke.about.expected is smoke.about.minutes is None
    assert load(small, {"train.steps": 7}, smoke=True).train.steps == 7
    assert parse(smoke.model_dump()) == smoke  # recipe.json says what it was


@pytest.mark.parametrize(
    "key, ids",
    [
        ("what_is_counted", BY_COUNTING),
        ("what_is_modelled", OF_THE_MODEL),
        ("kind_of_model", {"C32"}),
    ],
)
def test_what_one_recipe_answers_for_others_is_asked_of_one(key, ids):
    key = globals()[key]
    asked = [key(name) for name in list_shipped() if ids <= {*few(name, "P")}]
    assert all(key(name) in asked for name in list_shipped()) and len(asked) < len(list_shipped())


def test_a_recipe_without_a_smoke_form_says_so(tmp_path):
    (tmp_path / "bare.toml").write_text("train = { steps = 3 }")
    with pytest.raises(ConfigError, match=r"bare.toml has no \[smoke\] table"):
        load(tmp_path / "bare.toml", smoke=True)


@pytest.mark.usefixtures("uncompiled")
def test_checks_at_the_end_are_told_and_do_not_stop_a_smoke_run(small, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "list_suite", lambda level: {"P": ("C1",), "S": ("C17",)}.get(level, ()))
    _, said = trained(load(small, smoke=True), tmp_path / "run")
    assert "--smoke: would have been stopped at the end by C17 better than counting: got" in said
    saved = json.loads((tmp_path / "run" / "checks.json").read_text())
    assert saved["final"][0]["verdict"] == "fail"
    serious = load(small, smoke=True).model_copy(update={"smoke": {}})
    with pytest.raises(CheckFailed, match="C17 better than counting"):
        trained(serious, tmp_path / "serious")


@pytest.mark.usefixtures("uncompiled")
def test_checks_before_step_1_stop_a_smoke_run_as_any_other(small, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "list_suite", lambda level: ("C1",) if level == "P" else ())
    unwaived = load(small, smoke=True).model_copy(update={"waive": {}})
    with pytest.raises(CheckFailed, match="C1 earlier tokens"):
        trained(unwaived, tmp_path / "run")
