"""From a hub to a verdict: downloaded, read, run, and remembered as far as it was seen to work."""

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from safetensors.mlx import save

from kssm_mlx import models
from kssm_mlx.checks.pretrained import english
from kssm_mlx.experiments import hosts, verification
from kssm_mlx.weights import configs, shipped, verified
from kssm_mlx.weights.hub import resolve
from kssm_mlx.weights.manifest import Manifest
from tests.weights.fake_hub import served

COMMIT, REPO = "c" * 40, "someone/tiny-rwkv"


def tiny(vocab_size):
    """A small RWKV-4 as a repository: config.json, and safetensors that have moved but learned nothing."""
    config = models.configure("rwkv", "xs", vocab_size=vocab_size, overrides={"hidden_size": 32})
    fresh = tree_flatten(models.build(config, seed=1).parameters())
    keys = mx.random.split(mx.random.key(2), len(fresh))
    weights = {n: a + 0.02 * mx.random.normal(a.shape, key=k) for (n, a), k in zip(fresh, keys)}
    stored = json.dumps(configs.to_file(config)).encode()
    return {"config.json": stored, "model.safetensors": save(weights, {"format": "mlx"})}


def words():
    """A tokenizer.json of 300 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([english()[:5000]], trainer)
    return tokenizer.to_str().encode()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("KSSM_CACHE", str(tmp_path / "verified"))
    with served({REPO: {COMMIT: tiny(300)}}, tmp_path, monkeypatch) as hub:
        yield hub


def known(monkeypatch, tokenizer):
    """Ship a manifest of the repository that names where its tokenizer is."""
    manifest = Manifest.model_validate({"repo": REPO, "tokenizer": tokenizer})
    monkeypatch.setattr(hosts, "shipped_manifests", lambda: {REPO: manifest})
    assert shipped.shipped_manifests is not hosts.shipped_manifests


def test_a_repository_without_tokenizer_borrows_the_one_its_manifest_names(hub, monkeypatch):
    assert hosts.open_model(REPO, verify=False).tokenizer is None
    hub.repos["someone/tokens"] = {COMMIT: {"tokenizer.json": words()}}
    known(monkeypatch, {"name": "words", "vocab_size": 300, "repo": "someone/tokens"})
    tokenizer = hosts.open_model(REPO, verify=False).tokenizer
    assert tokenizer.vocab_size == 300 and tokenizer.decode(tokenizer.encode("a bridge")) == "a bridge"


def test_a_tokenizer_that_cannot_be_had_is_none_with_a_hint(hub, monkeypatch):
    known(monkeypatch, {"name": "words", "vocab_size": 300, "repo": "someone/absent"})
    opened = hosts.open_model(REPO, verify=False)
    assert opened.tokenizer is None and "no tokenizer for 300 embedding rows" in opened.notes["hint"]


def test_random_weights_from_the_hub_fail_at_behaviour(hub, monkeypatch):
    hub.repos[REPO][COMMIT]["tokenizer.json"] = words()
    done = verification.verify_weights(REPO)
    verdicts = {c.id: c for c in done.checks}
    assert verdicts["W12"].verdict == "pass"  # the hub's own digest of what it served
    assert [c.id for c in done.checks if not c.ok] == ["W24", "W26"]  # the files alone show nothing
    assert verified.is_verified(resolve(REPO).path) is None


def test_a_model_that_was_never_seen_to_speak_is_not_verified_to_the_end(hub, monkeypatch):
    done = verification.verify_weights(REPO)
    silent = {c.id: c.verdict for c in done.checks if c.level == "L5"}
    assert done.ok and set(silent.values()) == {"not measurable"}
    path = resolve(REPO).path
    assert verified.is_verified(path, "L3") and verified.is_verified(path, "L5") is None
