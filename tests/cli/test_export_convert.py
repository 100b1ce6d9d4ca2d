"""`kssm export` and `kssm convert` through the command line: what they print, what they refuse."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from kssm_mlx.cli import app
from kssm_mlx.models import build, configure
from kssm_mlx.weights.export import export as write_folder
from tests.support.exported import SMALL, exported, tiny


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KSSM_CACHE", str(tmp_path / "cache"))
    return exported(tiny("mamba"), tmp_path / "model")


def kssm(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_export_says_how_to_run_the_folder(folder, tmp_path):
    done = kssm("export", folder, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "mlx_lm.generate --model" in done.output and "--trust-remote-code" in done.output
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "kssm_model.py", "model.safetensors", "tokenizer.json"} <= names


def test_export_for_transformers_has_its_architecture(folder, tmp_path):
    assert kssm("export", folder, tmp_path / "out", "--format", "hf").exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["MambaForCausalLM"] and "model_file" not in config


@pytest.mark.usefixtures("uncompiled")
def test_convert_prints_size_and_loss_before_and_after(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    done = kssm("convert", folder, tmp_path / "out", "--bits", 8, "--group-size", 32, "--text", text)
    assert done.exit_code == 0, done.output
    before, after = map(float, done.output.split("nats/token")[1].split()[:2])
    assert before != after and abs(before - after) < 0.1
    assert "quantised modules" in done.output


@pytest.mark.parametrize(
    "arguments", [("export", "MODEL", "OUT"), ("convert", "MODEL", "OUT"), ("generate", "MODEL", "a")]
)
def test_weights_that_fail_are_opened_on_request_only_and_it_is_said(arguments, folder, tmp_path):
    spoil(folder)
    places = {"MODEL": folder, "OUT": tmp_path / "out"}
    given = [places.get(a, a) for a in arguments]
    refused = kssm(*given)
    assert refused.exit_code == 1 and "W16 dead or scaled layers" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = kssm(*given, "--no-verify")
    assert done.exit_code == 0, done.output
    assert "kssm: --no-verify: W16 dead or scaled layers" in done.stderr


def test_generate_without_tokenizer_says_so_and_shows_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KSSM_CACHE", str(tmp_path / "cache"))
    config = configure("mamba", "xs", vocab_size=300, overrides=SMALL["mamba"])
    folder = write_folder(build(config), tmp_path / "model")
    done = kssm("generate", folder, "a")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no tokenizer for 300 embedding rows: put its tokenizer.json" in done.stderr


def spoil(folder):
    """One projection at 1e-7 of its size, as a public model had them all."""
    weights = mx.load(str(folder / "model.safetensors"))
    name = "backbone.layers.0.mixer.in_proj.weight"
    spoiled = weights | {name: weights[name] * 1e-7}
    mx.eval(spoiled)
    mx.save_safetensors(str(folder / "model.safetensors"), spoiled, {"format": "mlx"})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("export", "MODEL", "OUT", "--format", "gguf"), "no export format 'gguf'; formats are mlx-lm, hf"),
        (("export", "MODEL", "MODEL"), "is in use; write into a new folder"),
        (("convert", "MODEL", "OUT", "--bits", "5"), "affine quantisation has no bits 5; it has 4 or 8"),
        (("convert", "MODEL", "OUT", "--text", "nowhere.txt"), "nowhere.txt does not exist"),
        (("export", "nowhere", "OUT"), "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, folder, tmp_path):
    places = {"MODEL": folder, "OUT": tmp_path / "out"}
    done = kssm(*(places.get(a, a) for a in arguments))
    assert done.exit_code == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
