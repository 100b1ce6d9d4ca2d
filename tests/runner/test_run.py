"""Runs from end to end, small: what they leave behind, how they go on, what stops them before they begin."""

import io
import json
import shutil
from importlib import import_module
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console

import kssm_mlx
from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import LEVELS
from kssm_mlx.cli.run_choice import choose
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import CheckFailed, CheckpointError, ConfigError, DataError
from kssm_mlx.models.base import flatten, with_parameters
from kssm_mlx.training.recipe import Recipe, override, parse
from tests.support.compiling import uncompiled
from tests.support.small_runs import sentences

run = import_module("kssm_mlx.runner.train")  # the package has a function of its name
STEPS = 12
SHORT = "a dozen steps teach nothing"
WAIVED = {"C17": SHORT, "C18": SHORT, "C19": SHORT}


FEW = {"P": ("C14", "C29", "C16"), "S": ("C17",)}
MANY = {"P": ("C13", "C14", "C29", "C16", "C1", "C2"), "S": ("C4", "C8", "C17", "C18", "C19"), "R": ("C37",)}
ALL = suite.list_suite


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A few checks, and no kernel that costs a second of g++; the run that all share had many."""
    monkeypatch.setattr(suite, "list_suite", lambda level: FEW.get(level, ()))
    with uncompiled():
        yield


def small_recipe(folder, text: str | None = None, **sections) -> Recipe:
    """A K-SSM of two thousand parameters on a text beside `folder`; `sections` change single keys."""
    source = folder.parent / "text.txt"
    if text is not None or not source.exists():
        source.write_text(text or sentences(600, 0))
    table = {
        "data": {"source": f"file:{source}", "tokenizer": "chars"},
        "model": {"size": "xs", "d_model": 8, "n_groups": 8, "mlp_hidden": 8},
        "train": {"steps": STEPS, "batch_size": 4, "context": 16, "warmup": 2, "learning_rate": 0.01},
        "eval": {"every": 6, "tokens": 256, "sample_tokens": 5, "prompt": "ada "},
        "save": {"every": 6},
        "waive": {},
    }
    return parse({name: {**values, **sections.get(name, {})} for name, values in table.items()})


def train(folder, recipe: Recipe | None = None, waivers=None, **options):
    """The result of a run and what a person saw of it."""
    out = io.StringIO()
    result = kssm_mlx.train(
        recipe or small_recipe(folder),
        folder,
        waivers=WAIVED if waivers is None else waivers,
        console=Console(file=out, width=200),
        **options,
    )
    return result, out.getvalue()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run; tests that change it take `copied`."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "list_suite", lambda level: MANY.get(level, ()))
        result, said = train(folder)
    return folder, result, said


@pytest.fixture
def copied(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    shutil.copy(finished[0].parent / "text.txt", tmp_path)
    return folder


def own_recipe(copied, finished, **sections) -> Recipe:
    """The recipe the copied run began with, whose text lies beside the original."""
    return small_recipe(finished[0], **sections)


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def verdicts(folder, stage: str) -> dict[str, dict]:
    return {c["id"]: c for c in json.loads((folder / "checks.json").read_text())[stage]}


# --- a run ----------------------------------------------------------------------------------------------


def test_what_a_run_leaves_behind(finished):
    folder, result, said = finished
    assert result.step == STEPS and not (folder / "run.lock").exists()
    names = {p.name for p in folder.iterdir()}
    assert {"recipe.json", "manifest.json", "metrics.jsonl", "samples.jsonl", "checks.json"} <= names
    steps = {p.name for p in (folder / "checkpoints").iterdir()}
    assert {"step_00000006", "step_00000012", "LATEST", "BEST"} <= steps
    assert "checking data and model before step 1" in said and "checking what came out" in said


def test_recipe_json_is_the_whole_recipe_and_configuration(finished):
    folder, _, _ = finished
    saved = json.loads((folder / "recipe.json").read_text())
    assert saved.pop("configuration")["d_model"] == 8
    assert parse(saved) == small_recipe(folder)


def test_manifest_counts_and_names(finished):
    folder, result, _ = finished
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parameters"] == sum(p.size for p in flatten(result.state.params).values())
    assert manifest["data"] == TokenData.open(folder / "data").index
    assert len(manifest["initial_digest"]) == 64
    assert manifest["environment"]["packages"]["mlx"] == mx.__version__


def test_rows_and_samples(finished):
    folder, _, _ = finished
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [r["step"] for r in rows if r["kind"] == "eval"] == [6, 12]
    assert all(
        np.isfinite(r[f"{q}_block0{i}"])
        for r in rows
        if r["kind"] == "train"
        for q in ("R", "psi", "h", "lyapunov")
        for i in (0, 1)
    )
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(s["step"], s["temperature"]) for s in samples] == [(6, 0.0), (6, 0.8), (12, 0.0), (12, 0.8)]
    assert all(s["prompt"] == "ada " and len(s["text"]) == 5 for s in samples)


def test_checks_are_recorded_with_their_waivers(finished):
    folder, _, _ = finished
    before, after = verdicts(folder, "preflight"), verdicts(folder, "final")
    during = verdicts(folder, "during")
    for level, found in zip("PRS", (before, during, after)):
        assert tuple(found) == MANY[level] and all(c["ok"] for c in found.values())
    waived = {c["id"]: c["numbers"]["waived_because"] for c in after.values() if c["verdict"] == "waived"}
    assert "C17" in waived and set(waived.values()) == {SHORT}


def test_load_gives_back_the_trained_model(finished):
    folder, result, _ = finished
    trained = kssm_mlx.load(folder)
    ids = mx.array(trained.tokenizer.encode("ada sees"))[None]
    assert trained.notes["step"] == result.best["step"] == 12
    expected = with_parameters(trained.model, result.state.params, lambda: trained.model(ids))
    assert mx.array_equal(kssm_mlx.load(folder).model(ids), expected)


def test_load_takes_a_checkpoint_folder(finished):
    folder, _, _ = finished
    early, late = (kssm_mlx.load(folder / "checkpoints" / f"step_{n:08d}") for n in (6, 12))
    assert (early.notes["step"], late.notes["step"]) == (6, 12) and early.digest != late.digest
    assert late.digest == kssm_mlx.load(folder).digest


def test_verify_a_recipe_before_anything_is_trained(finished, tmp_path):
    path = tmp_path / "small.toml"
    saved = small_recipe(finished[0]).model_dump(exclude_defaults=True)
    path.write_text(
        "".join(
            f"[{s}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in t.items()) for s, t in saved.items()
        )
    )
    found = kssm_mlx.verify(path)
    assert tuple(c.id for c in found) == FEW["P"] and all(c.ok for c in found)
    assert [c.id for c in kssm_mlx.verify(path, only=["C6"])] == ["C6"]


def test_verify_a_run_before_and_after(copied):
    found = {c.id: c for c in kssm_mlx.verify(copied)}
    assert tuple(found) == FEW["P"] + FEW["S"]
    assert found["C17"].verdict == "fail", "a waiver is of one run of the checks, not for ever"
    assert verdicts(copied, "verify").keys() == found.keys()
    assert {c.level for c in kssm_mlx.verify(copied, level="S")} == {"S"}


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_every_check_has_an_answer_about_a_run(copied, monkeypatch, level):
    monkeypatch.setattr(suite, "list_suite", ALL)
    found = kssm_mlx.verify(copied, level=level)
    assert found and [c.got for c in found if "traceback" in c.numbers] == []


def test_the_same_recipe_is_the_same_run(finished, tmp_path):
    folder, result, _ = finished
    again, _ = train(tmp_path / "again", small_recipe(folder))
    one, other = flatten(result.state.params), flatten(again.state.params)
    assert all(mx.array_equal(one[n], other[n]) for n in one)


# --- going on -------------------------------------------------------------------------------------------


def test_a_finished_run_says_so(copied, finished):
    before = contents(copied / "checkpoints")
    result, said = train(copied, own_recipe(copied, finished), resume=True)
    assert result.was_finished and "is finished: 12 of 12 steps are done" in said
    assert contents(copied / "checkpoints") == before


def test_resume_without_a_run_begins_one(tmp_path):
    result, said = train(tmp_path / "run", small_recipe(tmp_path / "run", train={"steps": 2}), resume=True)
    assert result.step == 2 and "no checkpoint yet" in said


def test_a_changed_recipe_is_refused_by_its_key_and_touches_nothing(copied, finished):
    before = contents(copied)
    changed = own_recipe(copied, finished, train={"learning_rate": 0.02}, model={"kappa": 0})
    with pytest.raises(ConfigError) as refusal:
        train(copied, changed, resume=True)
    for words in (
        "train.learning_rate was 0.01, is now 0.02",
        "model.kappa was None, is now 0",
        "--allow-config-change",
    ):
        assert words in str(refusal.value)
    assert contents(copied) == before


def test_a_change_that_is_allowed_is_written_down(copied, finished):
    longer = own_recipe(copied, finished, train={"steps": STEPS + 2})
    result, said = train(copied, longer, resume=True, allow_config_change=True)
    assert result.step == STEPS + 2 and "train.steps was 12, is now 14" in said
    assert json.loads((copied / "recipe.json").read_text())["train"]["steps"] == STEPS + 2


@pytest.mark.parametrize(
    "sections, message",
    [
        (
            {"data": {"tokenizer": "bytes"}},
            r"tokenizer \w+ of \d+ tokens.*now has tokenizer \w+ of 256 tokens",
        ),
        ({"model": {"n_layers": 3}}, r"parameter blocks\.2\..* has shape None in the checkpoint"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_changes(copied, finished, sections, message):
    before = contents(copied)
    with pytest.raises(CheckpointError, match=message):
        train(copied, own_recipe(copied, finished, **sections), resume=True, allow_config_change=True)
    assert contents(copied) == before
    assert kssm_mlx.load(copied).notes["step"] == 12


def test_a_run_goes_on_with_the_text_it_began_with(tmp_path):
    """Its source may change or go away: the ids are in the run folder."""
    folder = tmp_path / "run"
    recipe = small_recipe(folder, train={"steps": 2})
    train(folder, recipe)
    data = contents(folder / "data")
    (tmp_path / "text.txt").write_text("quite another text, with other letters: QXZ")
    assert train(folder, recipe, resume=True)[0].was_finished
    (tmp_path / "text.txt").unlink()
    train(folder, recipe, resume=True)
    assert contents(folder / "data") == data


def test_lost_data_is_prepared_again(copied, finished):
    data = contents(copied / "data")
    shutil.rmtree(copied / "data")
    train(copied, own_recipe(copied, finished), resume=True)
    assert contents(copied / "data") == data


# --- stopped --------------------------------------------------------------------------------------------


def random_letters() -> str:
    return "".join(np.random.default_rng(0).choice(list("abcdefghij"), 20000))


def test_a_failed_check_stops_the_run_before_step_1(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(
        CheckFailed, match=r"C29 the order of the tokens can be learned: got order gain"
    ) as stop:
        train(folder, small_recipe(folder, random_letters(), eval={"prompt": ""}))
    assert stop.value.exit_code == 1
    assert not verdicts(folder, "preflight")["C29"]["ok"]
    assert not (folder / "checkpoints").exists() and not (folder / "metrics.jsonl").exists()
    assert not (folder / "run.lock").exists()


def test_a_waiver_lets_it_through_and_is_recorded(tmp_path):
    folder = tmp_path / "run"
    waivers = {**WAIVED, "C29": "noise is what is asked for"}
    recipe = small_recipe(folder, random_letters(), train={"steps": 2}, eval={"prompt": ""})
    result, _ = train(folder, recipe, waivers)
    assert result.step == 2
    check = verdicts(folder, "preflight")["C29"]
    assert check["verdict"] == "waived" and check["numbers"]["waived_because"] == "noise is what is asked for"


def test_a_failed_last_check_names_itself_after_the_run(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(CheckFailed, match=r"C17 better than counting: got .* nats/token"):
        train(folder, small_recipe(folder, train={"steps": 2}), waivers={})
    assert kssm_mlx.load(folder).notes["step"] == 2


@pytest.mark.parametrize(
    "waivers, message", [({"C99": "why"}, "no such check"), ({"C29": " "}, "needs a reason")]
)
def test_a_waiver_that_means_nothing_is_refused_before_anything_is_written(tmp_path, waivers, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", small_recipe(tmp_path / "run"), waivers)
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_one_folder_is_refused(copied, finished):
    before = contents(copied)
    with pytest.raises(CheckpointError, match=r"already holds a run; kssm train .* --resume goes on"):
        train(copied, own_recipe(copied, finished))
    assert contents(copied) == before


def test_too_little_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="context"):
        train(tmp_path / "run", small_recipe(tmp_path / "run", "too little text"))
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_prompt_the_tokenizer_cannot_read_is_refused_before_step_1(tmp_path):
    with pytest.raises(DataError, match=r"eval\.prompt: character 'Ω' at position 0"):
        train(tmp_path / "run", small_recipe(tmp_path / "run", eval={"prompt": "Ω"}))
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        train(tmp_path / "file" / "run", small_recipe(tmp_path / "run"))


def test_a_damaged_checkpoint_is_not_loaded(copied):
    weights = copied / "checkpoints" / "step_00000012" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step_00000012 is damaged: model\.safetensors has sha256"):
        kssm_mlx.load(copied)


@pytest.mark.parametrize("warmup, said", [(2, False), (3, True)])
def test_a_warmup_of_most_of_the_run_is_said(warmup, said, tmp_path):
    recipe = override(small_recipe(tmp_path), {"train.steps": 4, "train.warmup": warmup})
    _, seen = train(tmp_path / "run", recipe, verify=False)
    assert (f"the learning rate rises for {warmup} of 4 steps (train.warmup)" in seen) is said


def test_what_is_no_run_is_not_loaded(tmp_path, copied):
    with pytest.raises(ConfigError, match=r"has no weights: .* and it is no run folder"):
        kssm_mlx.load(tmp_path)
    (copied / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"recipe\.json is not JSON"):
        kssm_mlx.load(copied)
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        kssm_mlx.load(copied)


def test_a_recipe_without_its_sections_is_not_gone_on_with(copied):
    """By the defaults, the text of another recipe would have been read."""
    for text in ("{}", '{"data": {"source": "pydoc"}, "model": {"family": "kssm"}, "train": {}}'):
        (copied / "recipe.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"recipe\.json has no \[\w+\], so it is not what the run"):
            choose(str(copied), None, [], smoke=False, resume=True)


def test_the_checkpoint_of_another_run_is_not_taken_for_its_own(copied, finished):
    """The same model at another rate: shapes and tokenizer fit, and the weights are not this run's."""
    name = sorted(p.name for p in (copied / "checkpoints").glob("step_*"))[-1]
    other = copied.with_name("other")
    shutil.copytree(copied, other)
    recipe = json.loads((other / "recipe.json").read_text())
    recipe["train"]["learning_rate"] /= 2
    (other / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(CheckpointError, match=r"is of another run than .*train\.learning_rate was 0\.01"):
        kssm_mlx.load(other / "checkpoints" / name)
    assert kssm_mlx.load(copied / "checkpoints" / name).digest


def test_a_recipe_by_name_takes_settings_and_has_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"train\.stepz"):
        kssm_mlx.train("default", settings={"train.stepz": 3})
    with pytest.raises(ConfigError, match="C99"):
        kssm_mlx.train("default", steps=7, settings={"eval.checks": ["C99"]}, smoke=True)
    assert not (tmp_path / "runs").exists()
    loaded = run._load("default", {"train.steps": 7}, True)
    assert loaded.train.steps == 7 and loaded.smoke
    assert run._run_folder("mine/own.toml", None) == Path("runs/own")


@pytest.mark.parametrize(
    "given, options, said",
    [
        ((Recipe(),), {}, r'as in train\(recipe, "runs/mine"\)'),
        ((3, "runs/x"), {}, "the name of one or a TOML file, got int"),
        ((Recipe(), "runs/x"), {"steps": 3}, "are of a recipe by name or file"),
        ((Recipe(), "runs/x"), {"smoke": True}, "are of a recipe by name or file"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, given, options, said
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        kssm_mlx.train(*given, **options)
    assert not any(tmp_path.iterdir())
