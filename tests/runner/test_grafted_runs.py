"""Training a graft: only in a verified base model, only from its prediction, the graft alone in the
checkpoint.
"""

from __future__ import annotations

import io
import json
import shutil
from types import SimpleNamespace

import mlx.core as mx
import pytest
from rich.console import Console

import kssm_mlx
from kssm_mlx.checks import suite
from kssm_mlx.errors import CheckFailed, ConfigError, WeightMismatch
from kssm_mlx.generation import generate
from kssm_mlx.runner import base_models
from kssm_mlx.runner.convert import export
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.runner.verify_weights import verify_weights
from kssm_mlx.training.recipe import parse
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.audit.inspect import inspect
from tests.support.divergence import kl_from_base_model
from tests.support.exported import exported, tiny
from tests.support.pretrained_runs import TOKENS, WAIVED, latest, parameters, recipe, train
from tests.support.small_runs import sentences

pytestmark = pytest.mark.usefixtures("quick")
FROZEN = {"train": "frozen", "graft": {"groups": 8, "layers": "all"}}


def stored(folder):
    arrays = mx.load(str(latest(folder) / "graft.safetensors"))
    mx.eval(arrays)
    return arrays


def test_a_graft_trains_in_a_frozen_base_model(base_model, tmp_path):
    _, said = train(base_model, tmp_path / "run", **FROZEN)
    arrays = stored(tmp_path / "run")
    assert arrays and all(name.startswith("graft.") for name in arrays)
    knobs = {"graft.0.k_scale", "graft.1.k_scale"}  # travel with what is trained, and are not
    trained = sum(a.size for name, a in arrays.items() if name not in knobs)
    assert f"{trained:,} of them trained" in said
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train_rows = [row for row in rows if row["kind"] == "train"]
    assert train_rows[-1]["loss"] < train_rows[0]["loss"]
    assert 0 < train_rows[-1]["R_block01"] < 1
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert saved["model"]["graft"]["memory"] == 128 and saved["host_digest"] == inspect(base_model).root


def test_a_trained_graft_opens_speaks_and_leaves_its_base_model_as_it_was(base_model, tmp_path):
    train(base_model, tmp_path / "run", **FROZEN)
    trained = kssm_mlx.load(tmp_path / "run")
    before, after = parameters(open_model(base_model).model), parameters(trained.model.host)
    assert after.keys() == before.keys() and all(mx.array_equal(after[n], before[n]) for n in before)
    assert kl_from_base_model(trained.model, TOKENS) > 1e-4
    (said,) = generate(trained.model, trained.tokenizer, "ada ", max_tokens=5, temperature=0.0)
    assert said.text
    found = {c.id: c.verdict for c in kssm_mlx.verify(tmp_path / "run", only=["C2", "C3", "C5", "C7", "C8"])}
    assert set(found.values()) == {"pass"}


def test_a_resumed_graft_is_the_unbroken_one(base_model, tmp_path):
    train(base_model, tmp_path / "run", **FROZEN)
    unbroken = stored(tmp_path / "run")
    shutil.rmtree(latest(tmp_path / "run"))
    result, _ = train(base_model, tmp_path / "run", resume=True, **FROZEN)
    assert (result.started_at, result.step) == (12, 24)
    again = stored(tmp_path / "run")
    assert again.keys() == unbroken.keys() and all(mx.array_equal(unbroken[n], again[n]) for n in again)


def test_a_run_of_the_published_hook_keeps_its_phases(base_model, tmp_path):
    """In its checkpoints, over a resumption, and where it is loaded: R drifts in one piece."""
    hook = {"train": "frozen", "graft": {"core": "hook", "legacy": True}}

    def go(**options):
        asked = recipe(base_model, **hook)
        return kssm_mlx.train(
            asked, tmp_path / "run", verify=False, console=Console(file=io.StringIO()), **options
        )

    go()
    unbroken = stored(tmp_path / "run")
    assert mx.abs(unbroken["graft.0.phases"]).max() > 0
    shutil.rmtree(latest(tmp_path / "run"))
    assert go(resume=True).started_at == 12
    assert all(mx.array_equal(unbroken[n], a) for n, a in stored(tmp_path / "run").items())
    loaded = kssm_mlx.load(tmp_path / "run", verify=False).model
    kept = tmp_path / "run" / "checkpoints"
    best = mx.load(str(kept / (kept / "BEST").read_text().strip() / "graft.safetensors"))
    assert mx.array_equal(parameters(loaded)["graft.0.phases"], best["graft.0.phases"])


@pytest.mark.parametrize("how", ["lora", "full"])
def test_a_graft_trains_together_with_its_base_model(base_model, tmp_path, how):
    train(base_model, tmp_path / "run", steps=12, train=how, graft={"core": "hook"})
    names = stored(tmp_path / "run").keys()
    assert any(name.startswith("graft.0") for name in names)
    assert any("lora_a" in name for name in names) == (how == "lora")
    assert ("host.backbone.embeddings.weight" in names) == (how == "full")


def test_a_graft_on_a_base_model_that_was_not_verified_is_refused(tmp_path):
    base_model = exported(tiny("mamba"), tmp_path / "host")
    with pytest.raises(WeightMismatch, match=r"has not passed verification.*run kssm verify-weights"):
        train(base_model, tmp_path / "run", **FROZEN)


def test_the_published_phase_block_is_stopped_by_name(base_model, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "list_suite", lambda level: ("C12",) if level == "P" else ())
    published = {"train": "frozen", "graft": {"core": "phase_block", "legacy": True}}
    with pytest.raises(CheckFailed, match=r"C12 a fresh graft is neutral: got KL .* expected <= 0.05"):
        train(base_model, tmp_path / "legacy", steps=1, **published)
    assert not (tmp_path / "legacy" / "metrics.jsonl").exists()
    train(base_model, tmp_path / "repaired", steps=1, train="frozen", graft={"core": "phase_block"})


def test_options_of_a_graft_are_checked_with_the_recipe(base_model):
    message = r"unknown key 'model\.graft\.layer' for carried; did you mean 'layers'"
    with pytest.raises(ConfigError, match=message):
        parse({"model": {"base": str(base_model), "graft": {"layer": 3}}})


def test_a_graft_cannot_be_exported(base_model, tmp_path):
    train(base_model, tmp_path / "run", steps=1, **FROZEN)
    with pytest.raises(ConfigError, match="is a graft, which other tools have no place for"):
        export(tmp_path / "run", tmp_path / "out")


@pytest.fixture
def trained_base_model(tmp_path, monkeypatch):
    """A recipe whose base model, of six steps, counts as one that speaks; and what it was judged on."""
    text = tmp_path / "text.txt"
    text.write_text(sentences(300, 0))
    (tmp_path / "small.toml").write_text(f"""
data = {{ source = "file:{text}" }}
model = {{ family = "mamba", size = "xs", hidden_size = 16, num_hidden_layers = 2 }}
train = {{ steps = 6, batch_size = 4, context = 16, warmup = 2 }}
eval = {{ every = 6, tokens = 256, sample_tokens = 0 }}
waive = {json.dumps(WAIVED).replace(":", " =")}
""")
    judged = []

    def kind(folder, text):
        judged.append(text)
        verified.remember(inspect(folder), "L5")
        return SimpleNamespace(ok=True, speaks=True)

    monkeypatch.setattr(base_models, "verify_weights", kind)
    return f"recipe:{tmp_path / 'small.toml'}", judged


def grafted_recipe(base_model, tmp_path):
    return parse(
        {
            "data": {"source": f"file:{tmp_path / 'text.txt'}"},
            "model": {"base": base_model, **FROZEN},
            "train": {"steps": 2, "batch_size": 4, "context": 16},
            "eval": {"every": 2, "tokens": 256, "sample_tokens": 0},
        }
    )


def test_a_base_model_is_trained_once_and_found_again(trained_base_model, tmp_path, capsys):
    base_model, judged = trained_base_model
    recipe = grafted_recipe(base_model, tmp_path)
    for name in ("one", "two"):
        kssm_mlx.train(recipe, tmp_path / name)
    assert capsys.readouterr().err.count("training the base model first") == 1
    assert len(judged) == 1 and judged[0] in (tmp_path / "text.txt").read_text() and "\0" not in judged[0]
    digests = [json.loads((tmp_path / n / "recipe.json").read_text())["host_digest"] for n in ("one", "two")]
    assert digests[0] == digests[1]
    assert kssm_mlx.load(tmp_path / "one").notes["verified"] == "L5"
    shutil.rmtree(verified.store().parent / "hosts")
    with pytest.raises(ConfigError, match=r"small.toml is not on this machine; kssm train"):
        kssm_mlx.load(tmp_path / "one")
    assert kssm_mlx.train(recipe, tmp_path / "one", resume=True).step == 2
    capsys.readouterr()


@pytest.mark.prints
def test_a_base_model_whose_training_was_cut_off_goes_on(trained_base_model, tmp_path):
    base_model, _ = trained_base_model
    recipe = grafted_recipe(base_model, tmp_path)
    kssm_mlx.train(recipe, tmp_path / "one")
    (home,) = (verified.store().parent / "hosts").iterdir()
    shutil.rmtree(home / "model")
    verified.store().unlink()
    assert kssm_mlx.train(recipe, tmp_path / "one", resume=True).step == 2


@pytest.mark.prints
def test_a_base_model_that_learned_nothing_is_refused(trained_base_model, tmp_path, monkeypatch):
    base_model, _ = trained_base_model
    monkeypatch.setattr(base_models, "verify_weights", verify_weights)
    with pytest.raises(CheckFailed, match=r"does not pass kssm verify-weights: .*W24 better than counting"):
        kssm_mlx.train(grafted_recipe(base_model, tmp_path), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.prints
def test_a_base_model_of_a_hundred_steps_passes_all_of_verify_weights(tmp_path):
    """Half a minute of RWKV-4 on the Python documentation reads it better than a bigram does."""
    (tmp_path / "host.toml").write_text("""
model = { family = "rwkv", size = "xs" }
train = { steps = 100, batch_size = 16, context = 64, learning_rate = 6e-3, warmup = 10 }
eval = { every = 100, tokens = 4096, sample_tokens = 0 }
""")
    recipe = parse(
        {
            "model": {"base": f"recipe:{tmp_path / 'host.toml'}", **FROZEN},
            "train": {"steps": 2, "batch_size": 4, "context": 16},
            "eval": {"every": 2, "tokens": 256, "sample_tokens": 0},
        }
    )
    assert kssm_mlx.train(recipe, tmp_path / "run").step == 2
    assert kssm_mlx.load(tmp_path / "run").notes["verified"] == "L5"
