"""Checkpoints that mlx-lm wrote: verified by their own names, opened, and what is wrong with them named."""

import json

import mlx.core as mx
import numpy as np
import pytest

import kssm_mlx
from kssm_mlx.errors import ConfigError, WeightMismatch
from kssm_mlx.generation import generate
from kssm_mlx.runner.verify_weights import verify_headers, verify_weights
from kssm_mlx.weights.audit.inspect import inspect
from tests.support import weight_files
from tests.support.mlx_lm_models import OPTIONS, folder, tokens

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    home = tmp_path_factory.mktemp("mlx_lm")
    return {name: folder(home / name, name) for name in OPTIONS}


@pytest.fixture(params=OPTIONS)
def checkpoint(request, checkpoints):
    return checkpoints[request.param]


@pytest.fixture
def llama(tmp_path):
    return folder(tmp_path / "llama", "llama")


def spoil(path, change):
    """The tensors of a folder with a change made to them."""
    tensors = weight_files.read(path)
    change(tensors)
    for index in path.glob("*.index.json"):
        index.unlink()
    weight_files.write(path / "model.safetensors", tensors)
    return inspect(path)


def configure(path, **changes):
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**values, **changes}))


def test_it_opens_to_the_logits_of_mlx_lm(checkpoint):
    from mlx_lm import load

    ours, (theirs, _) = kssm_mlx.load(checkpoint), load(str(checkpoint))
    assert mx.array_equal(ours.model(tokens(2, 20)), theirs(tokens(2, 20)))
    assert ours.tokenizer.name and ours.notes["verified"] == "L3"


def test_it_says_what_mlx_lm_says_alone_and_in_a_batch(checkpoint):
    from mlx_lm import load, stream_generate

    prompts = ["Hello world", "a", "The quick brown fox jumps over it"]
    ours, (theirs, tokenizer) = kssm_mlx.load(checkpoint), load(str(checkpoint))
    expected = [
        [r.token for r in stream_generate(theirs, tokenizer, tokenizer.encode(p), max_tokens=8)]
        for p in prompts
    ]
    rows = generate(ours.model, ours.tokenizer, prompts, max_tokens=8)
    assert [list(row.ids) for row in rows] == [
        ids if 0 not in ids else ids[: ids.index(0)] for ids in expected
    ]


def test_every_layer_passes_on_an_intact_one(checkpoint):
    done = verify_weights(checkpoint)
    failed = {c.id: c.got for c in done.checks if c.verdict == "fail"}
    assert failed.keys() <= {"W24", "W26"}  # it was never trained
    passed = {c.id for c in done.checks if c.verdict == "pass"}
    assert passed >= {"W1", "W2", "W6", "W7", "W8", "W9", "W13", "W14", "W15", "W16", "W20", "W22", "W23"}
    assert verify_headers(checkpoint).verification.ok


def test_shards_and_half_precision_are_read(llama):
    configure(llama, torch_dtype="bfloat16")
    found = weight_files.shard(llama)
    assert inspect(found).ok and kssm_mlx.load(found).model(tokens(1, 3)).shape == (1, 3, 256)


NAME = "model.layers.1.mlp.up_proj.weight"


def damaged(tensors, name, **values):
    tensors[name] = tensors[name]._replace(**values)


@pytest.mark.parametrize(
    "change, check, message",
    [
        (lambda t: t.pop(NAME), "W7", "1 without a tensor: model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update(stray=t[NAME]), "W7", "1 that nothing takes: stray"),
        (lambda t: damaged(t, NAME, shape=t[NAME].shape[::-1]), "W8", r"is \[32, 48\], .* needs \[48, 32\]"),
        (
            lambda t: damaged(t, NAME, data=np.full(48 * 32, np.nan, "<f4").tobytes()),
            "W13",
            r"up_proj.weight \(1,536 NaN",
        ),
        (
            lambda t: damaged(t, NAME, data=bytes(48 * 32 * 4)),
            "W14",
            "1 all zero: model.layers.1.mlp.up_proj",
        ),
        (
            lambda t: t.update({NAME: t[NAME.replace("1", "0")]}),
            "W15",
            "up_proj.weight = model.layers.1.mlp.up",
        ),
        (
            lambda t: t.update({"lm_head.weight": weight_files.stored(np.ones((256, 32)))}),
            "W10",
            "lm_head.weight is not model.embed_tokens.weight",
        ),
    ],
    ids=["missing", "extra", "transposed", "NaN", "zero", "copied", "head of its own"],
)
def test_damage_is_named(llama, change, check, message):
    found = spoil(llama, change)
    assert check in weight_files.failed(found)
    with pytest.raises(WeightMismatch, match=message):
        kssm_mlx.load(llama)


def test_a_tied_head_and_buffers_that_everybody_computes_may_be_stored(llama):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        buffer = weight_files.stored(np.arange(4.0))
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = buffer

    found = spoil(llama, add)
    assert found.ok and found.names.unread == {
        "lm_head.weight": "model.embed_tokens.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq": None,
    }


def test_keys_that_mlx_lm_drops_are_told(llama):
    configure(llama, pretraining_tp=1, hidden_act="silu", bos_token_id=1)
    (warned,) = [f for f in inspect(llama).findings if f.check == "W6"]
    assert warned.warning and "has pretraining_tp, hidden_act, which mlx-lm's llama does not" in warned.got


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model_type": "lama"},
            "model_type 'lama'; known: kssm, .*, and the models of mlx-lm, which has none",
        ),
        (
            {"model_file": "own.py"},
            "model_file = 'own.py', which names code of the model's own; no such code",
        ),
        ({"vocab_size": "many"}, "vocab_size 'many'; expected a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 4,096, got 1,000,000,000"),
        ({"num_hidden_layers": 300}, "config.json asks for 300 blocks, there are"),
        ({"hidden_size": "wide"}, "llama cannot be made of these options: TypeError"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(llama, changes, message):
    configure(llama, **changes)
    with pytest.raises((ConfigError, WeightMismatch), match=message):
        kssm_mlx.load(llama)


def test_what_mlx_lm_makes_of_several_tensors_is_to_be_converted_first(tmp_path):
    """Mixtral's experts are one tensor each in Hugging Face's files, and stacked in mlx-lm's own."""
    own = folder(tmp_path / "own", "mixtral", num_local_experts=2, num_experts_per_tok=1)
    assert inspect(own).ok

    def unstack(tensors):
        for layer in range(2):
            for ours, theirs in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
                block = f"model.layers.{layer}.block_sparse_moe"
                stacked = tensors.pop(f"{block}.switch_mlp.{ours}.weight")
                for e, expert in enumerate(stacked.values):
                    tensors[f"{block}.experts.{e}.{theirs}.weight"] = weight_files.stored(expert)

    found = spoil(own, unstack)
    assert weight_files.failed(found) == {"W7"}
    with pytest.raises(
        WeightMismatch, match=r"mixtral makes .* out of other tensors .* Fix: convert it with mlx_lm.con"
    ):
        kssm_mlx.load(own)
