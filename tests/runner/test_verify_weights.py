"""`kssm verify-weights` from end to end: layers, manifests, what is remembered, what is refused."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import kssm_mlx
from kssm_mlx.cli import app
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.errors import CheckFailed, ConfigError, WeightMismatch
from kssm_mlx.runner import verify_weights
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.audit.manifest import read_manifest
from tests.support import weight_files


@pytest.fixture
def folder(tmp_path):
    return weight_files.folder(tmp_path / "m", "mamba")


@pytest.fixture
def bytes_folder(tmp_path):
    return weight_files.folder(tmp_path / "b", "mamba", vocab_size=256)


def damaged(folder):
    tensors = weight_files.read(folder)
    name = next(n for n in tensors if n.endswith("in_proj.weight"))
    values = tensors[name].values.copy()
    values[0, 0] = np.nan
    weight_files.write(folder / "model.safetensors", tensors | {name: weight_files.stored(values)})
    return folder


def kssm(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_quick_reads_files_only(folder):
    done = verify_weights.verify_weights(folder, quick=True)
    assert done.ok and {c.level for c in done.checks} == {"L0", "L1", "L2", "L3"}
    assert verified.is_verified(folder)["level"] == "L3"


def test_the_whole_of_it_runs_the_model(folder):
    done = verify_weights.verify_weights(folder)
    by_id = {c.id: c for c in done.checks}
    assert by_id["W22"].verdict == by_id["W23"].verdict == "pass"
    assert by_id["W24"].verdict == "not measurable"  # no tokenizer
    assert not verified.is_verified(folder, "L5")  # nobody saw it speak


def test_random_weights_do_not_speak(bytes_folder):
    """L0 to L3 cannot tell; L5 does: bytes of English above the unigram."""
    assert verify_weights.verify_weights(bytes_folder, quick=True).ok
    done = verify_weights.verify_weights(bytes_folder)
    assert {c.id for c in done.checks if c.verdict == "fail"} >= {"W24"}
    assert not verified.is_verified(bytes_folder, "L5")


def test_a_manifest_holds_what_was_measured_and_refuses_other_weights(folder, tmp_path):
    done = verify_weights.verify_weights(folder)
    file = tmp_path / "m.toml"
    made = verify_weights.record_manifest(done, file)
    assert read_manifest(file) == made and made.fingerprint and made.root == done.inspection.root
    again = {c.id: c.verdict for c in verify_weights.verify_weights(folder, manifest=file).checks}
    assert again["W11"] == again["W21"] == "pass"
    tensors = weight_files.read(folder)
    name = next(n for n in tensors if n.endswith("in_proj.weight"))
    other = tensors | {name: weight_files.stored(1.01 * tensors[name].values)}
    weight_files.write(folder / "model.safetensors", other)
    failed = [c for c in verify_weights.verify_weights(folder, manifest=file).checks if not c.ok]
    assert [c.id for c in failed] == ["W11"] and name in failed[0].got


def test_no_manifest_of_weights_that_failed(folder, tmp_path):
    done = verify_weights.verify_weights(damaged(folder), quick=True)
    with pytest.raises(CheckFailed, match="failed W13"):
        verify_weights.record_manifest(done, tmp_path / "m.toml")
    assert not (tmp_path / "m.toml").exists()


def test_models_open_with_their_tokenizer_or_a_hint(folder, bytes_folder):
    opened = kssm_mlx.load(folder)
    assert opened.tokenizer is None and "no tokenizer for 40 embedding rows" in opened.notes["hint"]
    model, tokenizer = kssm_mlx.load(bytes_folder)
    assert isinstance(tokenizer, ByteTokenizer) and model.args.vocab_size == 256
    assert opened.digest == verify_weights.verify_weights(folder, quick=True).inspection.root


def test_damaged_models_open_only_when_asked_to(folder):
    with pytest.raises(WeightMismatch, match="W13 finite values"):
        open_model(damaged(folder))
    assert "W13" in open_model(folder, verify=False).notes["findings"][0]


def test_command_line(folder, tmp_path):
    good = kssm("verify-weights", folder, "--quick", "--write-manifest", tmp_path / "m.toml")
    assert good.exit_code == 0 and "W1 container header" in good.stdout and "root " in good.stdout
    assert "passed L0 to L3" in good.stdout and f"written: {tmp_path / 'm.toml'}" in good.stdout
    found = json.loads(kssm("verify-weights", folder, "--quick", "--json", "--only", "L1,W13").stdout)
    assert [c["id"] for c in found["checks"]] == ["W6", "W7", "W8", "W9", "W10", "W13"]
    bad = kssm("verify-weights", damaged(folder), "--quick", "--manifest", tmp_path / "m.toml")
    assert bad.exit_code == 1 and "fail" in bad.stdout and "W11: get the file again" in bad.stdout
    some = kssm("verify-weights", folder, "--quick", "--only", "L0")
    assert some.exit_code == 1 and "failed W13" in some.stdout and "W13 finite" not in some.stdout


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--only", "W99"], "--only W99: no such layer or check"),
        (["--manifest", "no.toml"], "cannot read the manifest no.toml"),
    ],
)
def test_command_line_refuses_in_one_line(folder, arguments, complaint):
    result = kssm("verify-weights", folder, "--quick", *arguments)
    assert result.exit_code == 2 and complaint in result.stderr and result.stderr.count("\n") == 1


def test_a_path_that_is_not_there_is_unusable(tmp_path):
    with pytest.raises(ConfigError, match="no file or folder"):
        verify_weights.verify_weights(tmp_path / "no" / "such" / "thing")
