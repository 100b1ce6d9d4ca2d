"""Training a host: only a verified one, its bits untouched, adapters alone in the checkpoint."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest

import kssm_mlx
from kssm_mlx.errors import CheckpointError, ConfigError, WeightMismatch
from kssm_mlx.runner.convert import convert, export
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.training.recipe import parse
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.audit.inspect import inspect
from kssm_mlx.weights.export import export as write_folder
from tests.support.exported import exported, tiny
from tests.support.pretrained_runs import TOKENS, latest, parameters, passed, train
from tests.support.small_runs import sentences

pytestmark = pytest.mark.usefixtures("quick")


def test_adapters_train_beside_an_untouched_host(host, tmp_path):
    before = parameters(open_model(host).model)
    result, said = train(host, tmp_path / "run")
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


def test_checks_look_at_what_is_trained(host, tmp_path):
    train(host, tmp_path / "run")
    stages = json.loads((tmp_path / "run" / "checks.json").read_text())
    found = {c["id"]: c for stage in stages.values() for c in stage}
    assert found["C16"]["verdict"] == "not measurable" and "it is a host" in found["C16"]["got"]
    assert found["C7"]["verdict"] == found["C8"]["verdict"] == "pass"
    assert "lora_" in found["C8"]["got"]


def test_export_fuses_what_was_trained(host, tmp_path):
    train(host, tmp_path / "run")
    adapted = kssm_mlx.load(tmp_path / "run").model(TOKENS)
    fused = open_model(export(tmp_path / "run", tmp_path / "fused")).model
    assert parameters(fused).keys() == parameters(open_model(host).model).keys()
    assert mx.abs(fused(TOKENS) - adapted).max() < 1e-4 * mx.abs(adapted).max()
    assert mx.abs(fused(TOKENS) - open_model(host).model(TOKENS)).max() > 1e-2


def test_a_resumed_run_is_the_unbroken_one(host, tmp_path):
    train(host, tmp_path / "run")
    unbroken = mx.load(str(latest(tmp_path / "run") / "adapters.safetensors"))
    mx.eval(unbroken)
    shutil.rmtree(latest(tmp_path / "run"))
    result, _ = train(host, tmp_path / "run", resume=True)
    assert (result.started_at, result.step) == (12, 24)
    again = mx.load(str(latest(tmp_path / "run") / "adapters.safetensors"))
    assert all(mx.array_equal(unbroken[name], again[name]) for name in unbroken)


def test_all_of_a_host_can_be_trained(host, tmp_path):
    train(host, tmp_path / "run", train="full")
    stored = mx.load(str(latest(tmp_path / "run") / "model.safetensors"))
    before = parameters(open_model(host).model)
    assert stored.keys() == before.keys()
    assert not any(mx.array_equal(stored[name], before[name]) for name in before)
    assert mx.isfinite(kssm_mlx.load(tmp_path / "run").model(TOKENS)).all()


def test_a_host_that_was_not_verified_is_refused(tmp_path):
    host = exported(tiny("mamba"), tmp_path / "host")
    with pytest.raises(WeightMismatch, match=r"has not passed verification.*run kssm verify-weights"):
        train(host, tmp_path / "run")
    verified.remember(inspect(host), "L3")
    with pytest.raises(WeightMismatch, match="has not passed verification"):
        train(host, tmp_path / "run")


def test_a_run_on_a_host_that_was_not_verified_says_so(host, tmp_path):
    verified.store().unlink()
    train(host, tmp_path / "run", verify=False)
    stages = json.loads((tmp_path / "run" / "checks.json").read_text())
    (check,) = stages["host"]
    assert (check["verdict"], check["numbers"]["waived_because"]) == ("waived", "--no-verify")
    recorded = json.loads((tmp_path / "run" / "manifest.json").read_text())["host"]
    assert recorded["verified"] is None and recorded["root"] == inspect(host).root
    assert kssm_mlx.load(tmp_path / "run").notes["verified"] is None
    with pytest.raises(ConfigError, match=r"model\.verify was False, is now True"):
        train(host, tmp_path / "run", resume=True)


def test_a_run_on_a_verified_host_says_how_far(host, tmp_path):
    train(host, tmp_path / "run", steps=1)
    (check,) = json.loads((tmp_path / "run" / "checks.json").read_text())["host"]
    assert (check["id"], check["verdict"], check["got"]) == ("W0", "pass", "passed L5")
    verified.store().unlink()
    with pytest.raises(WeightMismatch, match="has not passed verification"):
        kssm_mlx.load(tmp_path / "run")
    assert kssm_mlx.load(tmp_path / "run", verify=False).notes["verified"] is None


def test_a_run_finds_its_host_from_any_folder(host, monkeypatch):
    monkeypatch.chdir(host.parent)
    written = parse({"model": {"host": host.name}})
    assert written.model.host == str(host.resolve())
    assert parse({"model": {"host": "owner/name"}}).model.host == "owner/name"


def test_a_host_changed_since_its_verification_is_refused(host, tmp_path):
    write_folder(tiny("mamba", state_size=6), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", host)
    with pytest.raises(WeightMismatch, match="its files were touched since"):
        train(host, tmp_path / "run")


def test_a_verdict_on_other_weights_is_refused(host, tmp_path):
    """The memory of verdicts itself is wrong: same files, another digest."""
    memory = json.loads(verified.store().read_text())
    memory[str(host.resolve())]["root"] = "0" * 64
    verified.store().write_text(json.dumps(memory))
    with pytest.raises(WeightMismatch, match="what passed verification had 000000000000"):
        train(host, tmp_path / "run")


def test_a_run_is_not_resumed_on_another_host(host, tmp_path):
    train(host, tmp_path / "run", steps=12)
    shutil.rmtree(host)
    model = tiny("mamba")
    model.layers[0].mixer.D = model.layers[0].mixer.D + 1
    exported(model, host)
    passed(host)
    with pytest.raises(WeightMismatch, match=r"the run began with .*give the run its own host back"):
        train(host, tmp_path / "run", steps=12, resume=True)
    with pytest.raises(WeightMismatch, match="the run began with"):
        kssm_mlx.load(tmp_path / "run")


def test_the_hosts_own_tokenizer_is_required(host, tmp_path):
    with pytest.raises(ConfigError, match=r"data.tokenizer is 'chars', which is not the host's own.*hf:"):
        train(host, tmp_path / "run", tokenizer="chars")
    train(host, tmp_path / "run", tokenizer=f"hf:{host}", steps=1)


def test_a_frozen_host_alone_has_nothing_to_train(host, tmp_path):
    with pytest.raises(ConfigError, match='"frozen" leaves nothing to train'):
        train(host, tmp_path / "run", train="frozen")


def test_adapters_of_another_recipe_do_not_load(host, tmp_path):
    train(host, tmp_path / "run", steps=1)
    path = tmp_path / "run" / "recipe.json"
    saved = json.loads(path.read_text())
    saved["model"]["train"] = "full"
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError):
        kssm_mlx.load(tmp_path / "run")


def test_a_host_without_tokenizer_takes_what_fits_its_embedding(tmp_path):
    host = write_folder(tiny("mamba", vocab_size=20), tmp_path / "host")
    passed(host)
    with pytest.raises(ConfigError, match="the tokenizer has 256 tokens, the host's embedding 20 rows"):
        train(host, tmp_path / "run")


def test_converted_weights_are_scored_before_and_after(host, tmp_path):
    done = convert(host, tmp_path / "small", bits=8, group_size=32, text=sentences(200, 1))
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
    host = write_folder(tiny("mamba", vocab_size=300), tmp_path / "host")
    done = convert(host, tmp_path / "small", bits=8, group_size=32, tokenizer=False)
    assert done.losses[1].nats is None
    assert "tokenizer" in done.losses[1].reason


def test_a_folder_in_use_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="is in use"):
        convert(tmp_path / "nowhere", tmp_path.parent, bits=4)
