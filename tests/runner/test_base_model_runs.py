"""Training a base model: only a verified one, its bits untouched, adapters alone in the checkpoint."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest

import kssm_mlx
from kssm_mlx.errors import CheckpointError, ConfigError, WeightMismatch
from kssm_mlx.runner.convert import convert, export
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.runner.verify_weights import verify_weights
from kssm_mlx.training.recipe import parse
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.audit.inspect import inspect
from kssm_mlx.weights.export import export as write_folder
from tests.support.exported import exported, tiny
from tests.support.pretrained_runs import TOKENS, latest, parameters, passed, train
from tests.support.small_runs import sentences

pytestmark = pytest.mark.usefixtures("quick")


def test_adapters_train_beside_an_untouched_base_model(base_model, tmp_path):
    before = parameters(open_model(base_model).model)
    result, said = train(base_model, tmp_path / "run")
    assert result.step == 24
    stored = mx.load(str(latest(tmp_path / "run") / "adapters.safetensors"))
    assert stored and all(name.endswith(("lora_a", "lora_b")) for name in stored)
    assert not (latest(tmp_path / "run") / "model.safetensors").exists()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    total, trained = sum(a.size for a in before.values()), sum(a.size for a in stored.values())
    assert f"{total + trained:,} parameters, {trained:,} of them trained" in said
    model = kssm_mlx.load(tmp_path / "run").model
    base = {n.replace(".linear.", "."): a for n, a in parameters(model).items() if n not in stored}
    assert base.keys() == before.keys()
    assert all(mx.array_equal(base[name], before[name]) for name in before)


def test_a_base_model_that_does_not_fit_is_refused_before_it_is_read(base_model, tmp_path, monkeypatch):
    monkeypatch.setattr("kssm_mlx.runner.initial_model.there_is_memory", lambda: 20_000)
    monkeypatch.setattr("kssm_mlx.runner.initial_model.open_model", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(
        ConfigError, match=r"takes .* of memory as it is stored, and there is 20 kB; in 4 bits it"
    ):
        train(base_model, tmp_path / "run")


def test_checks_look_at_what_is_trained(base_model, tmp_path):
    train(base_model, tmp_path / "run")
    stages = json.loads((tmp_path / "run" / "checks.json").read_text())
    found = {c["id"]: c for stage in stages.values() for c in stage}
    assert found["C16"]["verdict"] == "not measurable" and "it is a base model" in found["C16"]["got"]
    assert found["C7"]["verdict"] == found["C8"]["verdict"] == "pass"
    assert "lora_" in found["C8"]["got"]


def test_export_fuses_what_was_trained(base_model, tmp_path):
    train(base_model, tmp_path / "run")
    adapted = kssm_mlx.load(tmp_path / "run").model(TOKENS)
    fused = open_model(export(tmp_path / "run", tmp_path / "fused")).model
    assert parameters(fused).keys() == parameters(open_model(base_model).model).keys()
    assert mx.abs(fused(TOKENS) - adapted).max() < 1e-4 * mx.abs(adapted).max()
    assert mx.abs(fused(TOKENS) - open_model(base_model).model(TOKENS)).max() > 1e-2


def test_a_resumed_run_is_the_unbroken_one(base_model, tmp_path):
    train(base_model, tmp_path / "run")
    unbroken = mx.load(str(latest(tmp_path / "run") / "adapters.safetensors"))
    mx.eval(unbroken)
    shutil.rmtree(latest(tmp_path / "run"))
    result, _ = train(base_model, tmp_path / "run", resume=True)
    assert (result.started_at, result.step) == (12, 24)
    again = mx.load(str(latest(tmp_path / "run") / "adapters.safetensors"))
    assert all(mx.array_equal(unbroken[name], again[name]) for name in unbroken)


def test_a_run_that_calls_its_base_model_host_goes_on(base_model, tmp_path):
    """As 0.1.0 wrote recipe.json; the checkpoints' record of the recipe is still written that way."""
    train(base_model, tmp_path / "run", steps=12)
    path = tmp_path / "run" / "recipe.json"
    written = json.loads(path.read_text())
    written["model"]["host"] = written["model"].pop("base")
    path.write_text(json.dumps(written))
    assert kssm_mlx.load(tmp_path / "run").notes["step"] == 12
    result, said = train(base_model, tmp_path / "run", steps=12, resume=True)
    assert result.step == 12 and "change" not in said.split("checking")[0]
    state = json.loads(next((tmp_path / "run" / "checkpoints").glob("*/state.json")).read_text())
    assert state["identity"]["config"]["model.host"] == str(base_model)


def test_all_of_a_base_model_can_be_trained(base_model, tmp_path):
    train(base_model, tmp_path / "run", train="full")
    stored = mx.load(str(latest(tmp_path / "run") / "model.safetensors"))
    before = parameters(open_model(base_model).model)
    assert stored.keys() == before.keys()
    assert not any(mx.array_equal(stored[name], before[name]) for name in before)
    assert mx.isfinite(kssm_mlx.load(tmp_path / "run").model(TOKENS)).all()


def test_a_base_model_that_was_not_verified_is_refused(tmp_path):
    base_model = exported(tiny("mamba"), tmp_path / "host")
    with pytest.raises(WeightMismatch, match=r"has not passed verification.*run kssm verify-weights"):
        train(base_model, tmp_path / "run")
    verified.remember(inspect(base_model), "L3")
    with pytest.raises(WeightMismatch, match="has not passed verification"):
        train(base_model, tmp_path / "run")


def test_a_run_on_a_base_model_that_was_not_verified_says_so(base_model, tmp_path):
    verified.store().unlink()
    train(base_model, tmp_path / "run", verify=False)
    stages = json.loads((tmp_path / "run" / "checks.json").read_text())
    (check,) = stages["host"]
    assert (check["verdict"], check["numbers"]["waived_because"]) == ("waived", "--no-verify")
    recorded = json.loads((tmp_path / "run" / "manifest.json").read_text())["host"]
    assert recorded["verified"] is None and recorded["root"] == inspect(base_model).root
    assert kssm_mlx.load(tmp_path / "run").notes["verified"] is None
    with pytest.raises(ConfigError, match=r"model\.verify was False, is now True"):
        train(base_model, tmp_path / "run", resume=True)


def test_a_run_on_a_verified_base_model_says_how_far(base_model, tmp_path):
    train(base_model, tmp_path / "run", steps=1)
    (check,) = json.loads((tmp_path / "run" / "checks.json").read_text())["host"]
    assert (check["id"], check["verdict"], check["got"]) == ("W0", "pass", "passed L5")
    verified.store().unlink()
    with pytest.raises(WeightMismatch, match="has not passed verification"):
        kssm_mlx.load(tmp_path / "run")
    assert kssm_mlx.load(tmp_path / "run", verify=False).notes["verified"] is None


def test_a_run_finds_its_base_model_from_any_folder(base_model, monkeypatch):
    monkeypatch.chdir(base_model.parent)
    written = parse({"model": {"base": base_model.name}})
    assert written.model.base == str(base_model.resolve())
    assert parse({"model": {"base": "owner/name"}}).model.base == "owner/name"


def test_a_base_model_changed_since_its_verification_is_refused(base_model, tmp_path):
    write_folder(tiny("mamba", state_size=6), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", base_model)
    with pytest.raises(WeightMismatch, match="its files were touched since"):
        train(base_model, tmp_path / "run")


def test_a_verdict_on_other_weights_is_refused(base_model, tmp_path):
    """The memory of verdicts itself is wrong: same files, another digest."""
    memory = json.loads(verified.store().read_text())
    memory[str(base_model.resolve())]["root"] = "0" * 64
    verified.store().write_text(json.dumps(memory))
    with pytest.raises(WeightMismatch, match="what passed verification had 000000000000"):
        train(base_model, tmp_path / "run")


def test_a_run_is_not_resumed_on_another_base_model(base_model, tmp_path):
    train(base_model, tmp_path / "run", steps=12)
    shutil.rmtree(base_model)
    model = tiny("mamba")
    model.layers[0].mixer.D = model.layers[0].mixer.D + 1
    exported(model, base_model)
    passed(base_model)
    with pytest.raises(WeightMismatch, match=r"the run began with .*give the run its own base model back"):
        train(base_model, tmp_path / "run", steps=12, resume=True)
    with pytest.raises(WeightMismatch, match="the run began with"):
        kssm_mlx.load(tmp_path / "run")


def test_the_base_models_own_tokenizer_is_required(base_model, tmp_path):
    with pytest.raises(
        ConfigError, match=r"data.tokenizer is 'chars', which is not the base model's own.*hf:"
    ):
        train(base_model, tmp_path / "run", tokenizer="chars")
    train(base_model, tmp_path / "run", tokenizer=f"hf:{base_model}", steps=1)


def test_a_frozen_base_model_alone_has_nothing_to_train(base_model, tmp_path):
    with pytest.raises(ConfigError, match='"frozen" leaves nothing to train'):
        train(base_model, tmp_path / "run", train="frozen")


def test_adapters_of_another_recipe_do_not_load(base_model, tmp_path):
    train(base_model, tmp_path / "run", steps=1)
    path = tmp_path / "run" / "recipe.json"
    saved = json.loads(path.read_text())
    saved["model"]["train"] = "full"
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError):
        kssm_mlx.load(tmp_path / "run")


def test_a_base_model_without_tokenizer_takes_what_fits_its_embedding(tmp_path):
    base_model = write_folder(tiny("mamba", vocab_size=20), tmp_path / "host")
    passed(base_model)
    with pytest.raises(ConfigError, match="the tokenizer has 256 tokens, the base model's embedding 20 rows"):
        train(base_model, tmp_path / "run")


def test_converted_weights_are_scored_before_and_after(base_model, tmp_path):
    done = convert(base_model, tmp_path / "small", bits=8, group_size=32, text=sentences(200, 1))
    before, after = done.losses
    assert done.bytes[1] < 0.5 * done.bytes[0]
    assert 0 < abs(after.nats - before.nats) < 0.1
    again = kssm_mlx.load(tmp_path / "small")
    assert mx.isfinite(again.model(TOKENS)).all()
    assert (
        len(done.modules)
        == len(json.loads((tmp_path / "small" / "config.json").read_text())["quantization"]) - 3
    )


def test_what_cannot_be_scored_says_why(tmp_path):
    base_model = write_folder(tiny("mamba", vocab_size=300), tmp_path / "host")
    done = convert(base_model, tmp_path / "small", bits=8, group_size=32, tokenizer=False)
    assert done.losses[1].nats is None
    assert "tokenizer" in done.losses[1].reason


def test_a_folder_in_use_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="is in use"):
        convert(tmp_path / "nowhere", tmp_path.parent, bits=4)


# Norms and fewer bits


def test_norms_are_trained_beside_an_untouched_base_model_and_fused(base_model, tmp_path):
    train(base_model, tmp_path / "run", train="dora")
    stored = mx.load(str(latest(tmp_path / "run") / "adapters.safetensors"))
    assert {name.rpartition(".")[2] for name in stored} == {"lora_a", "lora_b", "m"}
    adapted = kssm_mlx.load(tmp_path / "run").model(TOKENS)
    fused = open_model(export(tmp_path / "run", tmp_path / "fused")).model
    assert mx.abs(fused(TOKENS) - adapted).max() < 1e-4 * mx.abs(adapted).max()


@pytest.fixture
def few_bits(base_model, tmp_path):
    """The base model in 4 bits, verified by W checks, as kssm verify-weights does."""
    folder = tmp_path / "few"
    convert(base_model, folder, bits=4, group_size=32)
    done = verify_weights(folder, quick=True)  # L4 and L5 ask what an untrained model cannot
    assert done.ok and {"W5", "W12"} <= {c.id for c in done.checks}
    passed(folder)
    return folder


def test_adapters_beside_a_converted_base_model_resume_and_are_exported(few_bits, tmp_path):
    from mlx_lm import load

    train(few_bits, tmp_path / "run", train="qlora")
    unbroken = mx.load(str(latest(tmp_path / "run") / "adapters.safetensors"))
    mx.eval(unbroken)
    adapted = kssm_mlx.load(tmp_path / "run").model(TOKENS)
    # Merged: the projections that were adapted are full again, the embedding stays in 4 bits.
    merged = open_model(export(tmp_path / "run", tmp_path / "merged")).model
    assert mx.abs(merged(TOKENS) - adapted).max() < 1e-4 * mx.abs(adapted).max()
    assert mx.abs(merged(TOKENS) - open_model(few_bits).model(TOKENS)).max() > 1e-2
    # Beside: mlx-lm reads the base model and the adapters.
    export(tmp_path / "run", tmp_path / "adapters", format="adapters")
    theirs, _ = load(str(few_bits), adapter_path=str(tmp_path / "adapters"), trust_remote_code=True)
    assert mx.allclose(theirs(TOKENS), adapted, atol=1e-4)

    shutil.rmtree(latest(tmp_path / "run"))
    result, _ = train(few_bits, tmp_path / "run", train="qlora", resume=True)
    again = mx.load(str(latest(tmp_path / "run") / "adapters.safetensors"))
    assert result.started_at == 12 and all(mx.array_equal(unbroken[n], again[n]) for n in unbroken)


@pytest.mark.parametrize("bits", [{"bits": 4, "group_size": 32}, {"bits": 4, "mode": "mxfp4"}])
def test_a_base_model_is_put_into_few_bits_in_memory(base_model, tmp_path, bits):
    result, said = train(base_model, tmp_path / "run", steps=12, train="qlora", quantize=bits)
    assert result.step == 12
    weights = sum(a.size for a in parameters(open_model(base_model).model).values())
    stored = mx.load(str(latest(tmp_path / "run") / "adapters.safetensors"))
    trained = sum(a.size for a in stored.values())
    assert f"{weights + trained:,} parameters, {trained:,} of them trained" in said  # not the packed numbers
    assert kssm_mlx.load(tmp_path / "run").notes["step"] == 12


def test_bits_that_do_not_go_with_what_is_asked_are_one_line(base_model, few_bits, tmp_path):
    with pytest.raises(ConfigError, match='"qlora" is for a quantised base model, and no projection of this'):
        train(base_model, tmp_path / "a", train="qlora")
    with pytest.raises(ConfigError, match=r"give the unquantised model, or take model.train"):
        train(few_bits, tmp_path / "b", train="lora")
    with pytest.raises(ConfigError, match="quantised already"):
        train(few_bits, tmp_path / "c", train="qlora", quantize={"bits": 4})
    with pytest.raises(ConfigError, match="mxfp4 quantisation has no bits 8"):
        train(base_model, tmp_path / "d", train="qlora", quantize={"bits": 8, "mode": "mxfp4"})
    with pytest.raises(ConfigError, match=r'quantize goes with train = "qlora".* got \'dora\''):
        train(base_model, tmp_path / "e", train="dora", quantize={"bits": 4})
