"""`kssm verify-weights REPO --headers-only`: by some requests, without the tensors."""

import json
import struct

import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.runner.verify_weights import verify_headers
from kssm_mlx.weights.hub import headers
from tests.support import weight_files
from tests.support.cli_fakes import kssm
from tests.support.fake_hub import served

REPO, COMMIT = "someone/tiny-mamba", "c" * 40


@pytest.fixture
def folder(tmp_path):
    return weight_files.folder(tmp_path / "m", "mamba", vocab_size=256)


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    config = {**json.loads(files["config.json"]), "eos_token_id": 0}
    files |= {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": b'{"eos_token_id": [0, 2]}',
    }
    with served({REPO: {COMMIT: files}}, tmp_path, monkeypatch) as hub:
        monkeypatch.setattr(headers, "FIRST", 512)  # so that tensors are left out, and a header needs two
        yield hub


def header_size(hub):
    (length,) = struct.unpack("<Q", hub.repos[REPO][COMMIT]["model.safetensors"][:8])
    return 8 + length


def test_names_shapes_and_sizes_are_known_from_the_header_alone(hub, tmp_path):
    found = verify_headers(REPO)
    assert {c.id for c in found.verification.checks if c.verdict == "pass"} >= {
        "W1",
        "W2",
        "W6",
        "W7",
        "W8",
        "W9",
    }
    assert not [c.id for c in found.verification.checks if not c.ok]
    weights, head = hub.repos[REPO][COMMIT]["model.safetensors"], header_size(hub)
    assert (found.outline.size, found.memory) == (len(weights), len(weights) - head)
    assert hub.downloads("model.safetensors") == ["bytes=0-511", f"bytes=512-{head - 1}"]
    assert found.outline.received < head + 2000 and found.outline.revision == COMMIT
    assert (found.ends, found.ends_agree) == ({"config.json": [0], "generation_config.json": [0, 2]}, True)
    assert not found.outline.path.exists() and not (tmp_path / "cache").exists()


def test_a_tensor_too_few_is_seen_before_the_download(hub, folder):
    tensors = weight_files.read(folder)
    tensors.pop(next(n for n in tensors if n.endswith("in_proj.weight")))
    weight_files.write(folder / "model.safetensors", tensors)
    hub.repos[REPO][COMMIT]["model.safetensors"] = (folder / "model.safetensors").read_bytes()
    result = kssm("verify-weights", REPO, "--headers-only")
    assert result.exit_code == 1 and "failed W7" in result.stdout


def test_the_command_says_what_a_download_would_be(hub):
    shown = kssm("verify-weights", REPO, "--headers-only").stdout
    assert "passed L0 and L1, by headers" in shown and "were received for this" in shown
    assert "ends of text: config.json 0; generation_config.json 0, 2\n" in shown
    hub.repos[REPO][COMMIT]["generation_config.json"] = b'{"eos_token_id": 3}'
    found = json.loads(kssm("verify-weights", REPO, "--headers-only", "--json").stdout)
    assert found["ok"] and found["revision"] == COMMIT and found["ends_agree"] is False


def test_a_folder_is_looked_at_in_the_same_way(folder):
    found = verify_headers(folder)
    assert found.verification.ok and found.outline.received == 0
    assert found.outline.size == (folder / "model.safetensors").stat().st_size


def test_what_has_no_header_at_its_beginning_is_refused(hub):
    files = hub.repos[REPO][COMMIT]
    weights = files.pop("model.safetensors")
    files["pytorch_model.bin"] = b"PK"
    with pytest.raises(
        ConfigError, match=r"pytorch_model.bin of .* does not say at its beginning what is in it"
    ):
        verify_headers(REPO)
    files["model.safetensors"] = struct.pack("<Q", 1 << 40) + weights[8:]
    with pytest.raises(
        ConfigError, match=r"announces a header of 1,099,511,627,776 bytes, more than 25,000,000"
    ):
        verify_headers(REPO)
    files["model.safetensors"] = weights
    hub.whole_only = True
    with pytest.raises(ConfigError, match=r"the hub sends no parts of files; run it without --headers-only"):
        verify_headers(REPO)
    hub.stop()
    result = kssm("verify-weights", REPO, "--headers-only")
    assert result.exit_code == 2 and "the hub cannot be reached" in result.stderr
    result = kssm("verify-weights", REPO, "--headers-only", "--quick")
    assert result.exit_code == 2 and "--quick does nothing beside --headers-only" in result.stderr
