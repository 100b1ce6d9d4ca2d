"""Every layout that is read gives the same model; what is damaged is found where it is damaged."""

import importlib.util
import json

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError, WeightMismatch
from kssm_mlx.weights.audit.inspect import inspect
from kssm_mlx.weights.io.container import open_container
from kssm_mlx.weights.io.torch_archive import check_archive, read_torch
from kssm_mlx.weights.loader import load_weights
from tests.support import weight_files
from tests.support.weight_files import failed

TOKENS = mx.array(np.random.default_rng(0).integers(0, 40, (2, 9)).astype(np.int32))
FAMILIES = sorted(weight_files.CONFIGS)


def assert_same(path, expected, tolerance=0.0):
    loaded = load_weights(path)
    assert float(mx.abs(loaded.model(TOKENS) - expected(TOKENS)).max()) <= tolerance
    return loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_shards_and_a_torch_file_are_the_same_model(tmp_path, family):
    path = weight_files.folder(tmp_path / "m", family)
    model = weight_files.model(family)
    one = assert_same(path, model)
    assert assert_same(weight_files.shard(path), model).digest == one.digest
    tensors = weight_files.read(path)
    for file in path.glob("model*"):
        file.unlink()
    weight_files.write_torch(path / "pytorch_model.bin", tensors)
    assert assert_same(path, model).digest == one.digest


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("family", ["rwkv", "rwkv7"])
def test_blinkdl_files_need_no_configuration(tmp_path, family, suffix):
    # BlinkDL's code has 64e-5 in the norm over the heads, also where they have 8 channels, as here.
    eps = {"head_norm_eps": 64e-5} if family == "rwkv7" else {}
    model = weight_files.model(family, tie_word_embeddings=False, **eps)
    tensors = weight_files.blinkdl(weight_files.tensors_of(model), family)
    if family == "rwkv7":  # in the file, and read by nobody
        tensors["blocks.0.att.v0"] = tensors["blocks.0.att.a0"]
    path = tmp_path / f"RWKV-x{suffix}"
    write = weight_files.write_torch if suffix == ".pth" else weight_files.write
    write(path, tensors)
    loaded = assert_same(path, model)
    assert loaded.config.num_hidden_layers == 3 and loaded.config.hidden_size == 16
    assert loaded.inspection.container.layout == "blinkdl"


def test_other_versions_of_rwkv_are_named(tmp_path):
    model = weight_files.model("rwkv", tie_word_embeddings=False)
    tensors = weight_files.blinkdl(weight_files.tensors_of(model), "rwkv")
    tensors["blocks.0.att.time_faaaa"] = tensors.pop("blocks.0.att.time_first")
    weight_files.write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(WeightMismatch, match="W6 configuration: the tensors are those of RWKV-5"):
        load_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_the_layout_of_state_spaces(tmp_path, family):
    """vocab_size is padded to a multiple of 8, the head is stored though it is tied."""
    model = weight_files.model(family)
    tensors = weight_files.tensors_of(model)
    tensors = {
        n.replace("embeddings", "embedding"): weight_files.stored(t.values.transpose(0, 2, 1))
        if "conv1d.w" in n
        else t
        for n, t in tensors.items()
    }
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
    weight_files.write_torch(tmp_path / "pytorch_model.bin", tensors)
    ssm = {"mamba": {"d_state": 4, "dt_rank": 2}, "mamba2": {"layer": "Mamba2", "d_state": 6, "headdim": 8}}[
        family
    ]
    config = {"d_model": 16, "n_layer": 3, "vocab_size": 37, "ssm_cfg": ssm, "rms_norm": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert assert_same(tmp_path, model).inspection.container.layout == "state-spaces"
    tensors["lm_head.weight"] = weight_files.stored(2 * tensors["lm_head.weight"].values)
    weight_files.write_torch(tmp_path / "pytorch_model.bin", tensors)
    assert failed(inspect(tmp_path)) == {"W10"}


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_files_keep_their_dynamics_in_float32(tmp_path, dtype):
    path = weight_files.folder(tmp_path / "m", "mamba")
    half = {}
    for name, t in weight_files.read(path).items():
        x = mx.array(t.values).astype(mx.float16 if dtype == "F16" else mx.bfloat16)
        half[name] = weight_files.Stored(dtype, t.shape, np.array(x.view(mx.uint16)).tobytes())
    weight_files.write(path / "model.safetensors", half)
    loaded = load_weights(path).model.backbone.layers[0].mixer
    assert loaded.A_log.dtype == loaded.D.dtype == loaded.dt_proj.bias.dtype == mx.float32
    assert loaded.in_proj.weight.dtype == (mx.float16 if dtype == "F16" else mx.bfloat16)
    as_float = load_weights(path, dtype=mx.float32).model.backbone.layers[0].mixer
    assert mx.array_equal(as_float.in_proj.weight, loaded.in_proj.weight.astype(mx.float32))


@pytest.mark.parametrize("family", FAMILIES)
def test_truncation_at_every_boundary_is_found(tmp_path, family):
    path = weight_files.folder(tmp_path / "m", family) / "model.safetensors"
    whole = path.read_bytes()
    tensors = open_container(path.parent).tensors.values()
    cuts = {0, 1, 7, 8, 9, *(t.offset for t in tensors), *(t.offset + t.nbytes - 1 for t in tensors)}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        assert failed(inspect(path.parent)) & {"W1", "W2"}, cut
    path.write_bytes(whole)
    assert inspect(path.parent).ok


def test_a_torch_file_is_refused_at_every_truncation(tmp_path):
    path = weight_files.folder(tmp_path / "m", "mamba")
    tensors = weight_files.read(path)
    (path / "model.safetensors").unlink()
    file = path / "pytorch_model.bin"
    weight_files.write_torch(file, tensors)
    whole = file.read_bytes()
    for cut in range(0, len(whole), 97):
        file.write_bytes(whole[:cut])
        assert failed(inspect(path)) & {"W1", "W2"}, cut


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch; pip install torch")
def test_what_torch_saves_is_what_is_read(tmp_path):
    import torch

    base = torch.randn(6, 8)
    tensors = {
        "whole": base,
        "transposed": base.T,
        "part": base[1:4, 2:7],
        "half": base.half(),
        "brain": base.bfloat16(),
        "parameter": torch.nn.Parameter(base[0].clone()),
        "one": torch.tensor(3),
        "none": torch.zeros(0, 4),
    }
    torch.save(tensors, tmp_path / "x.pth")
    module = torch.nn.Linear(3, 4)
    torch.save(module.state_dict(), tmp_path / "y.pth")
    found, findings = read_torch(tmp_path / "x.pth")
    assert findings == [] and check_archive(tmp_path / "x.pth", lambda n: None) == []
    for name, t in tensors.items():
        raw = t.detach().view(torch.uint16) if name == "brain" else t.detach()
        assert np.array_equal(found[name].map(), raw.numpy()), name
    assert np.array_equal(read_torch(tmp_path / "y.pth")[0]["bias"].map(), module.bias.detach().numpy())


def test_the_files_our_tests_write_are_what_torch_reads(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch; pip install torch")
    tensors = {"a": weight_files.stored(np.arange(6.0).reshape(2, 3))}
    weight_files.write_torch(tmp_path / "x.pth", tensors)
    assert torch.load(tmp_path / "x.pth", weights_only=True)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "field, value, why",
    [("flags", 1, "is encrypted, password required"), ("version", 255, "zip file version 25.5")],
)
def test_an_archive_that_zipfile_cannot_read_is_told_as_what_it_is(tmp_path, field, value, why):
    path = tmp_path / "model.bin"
    weight_files.write_torch(path, weight_files.read(weight_files.folder(tmp_path / "m", "mamba")))
    data = bytearray(path.read_bytes())
    # Where local and central headers have it, in bytes from the signature.
    for signature, at in {
        b"PK\x03\x04": {"version": 4, "flags": 6},
        b"PK\x01\x02": {"version": 6, "flags": 8},
    }.items():
        start = data.find(signature)
        while start >= 0:
            data[start + at[field]] = value
            start = data.find(signature, start + 1)
    path.write_bytes(data)
    tensors, (finding,) = read_torch(path)
    assert not tensors
    assert finding.check == "W2"
    assert "has an entry that cannot be read" in finding.got and why in finding.got
    assert "safetensors" in finding.fix


def test_legacy_torch_files_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.rest")
    with pytest.raises(WeightMismatch, match=r"W1 .* torch before 1\.6, .* torch\.save\(torch\.load\("):
        load_weights(tmp_path / "x.pth")


def test_a_path_without_weights_is_unusable(tmp_path):
    for path, complaint in [
        (tmp_path / "no", "no file or folder"),
        (tmp_path, "no weights"),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            open_container(path)
    weight_files.folder(tmp_path / "m", "mamba")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        open_container(tmp_path / "m")
