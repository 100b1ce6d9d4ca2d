"""Parity is the specification: our logits are those of the architectures' own libraries.

The frozen checkpoints run everywhere; tests that run the libraries themselves need torch and say so.
"""

import importlib.util

import mlx.core as mx
import numpy as np
import pytest

from tests.parity import ours
from tests.parity import upstream as libraries

TOLERANCE = 1e-4
# Largest logit error with bf16 weights, over the standard deviation of the logits. Measured on these files:
# ours from upstream's bf16 at most 0.11, upstream's bf16 from its own fp32 at most 0.08.
BF16_TOLERANCE = 0.15


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"upstream needs {', '.join(missing)}; pip install them")


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize("name", libraries.NAMES)
def test_frozen_logits(name):
    config, weights, tokens, expected = ours.thaw(name)
    assert_close(ours.logits(ours.load(config, weights), tokens), expected)


@pytest.mark.parametrize("name", libraries.NAMES)
def test_every_parameter_counts(name):
    """Disturb any one tensor and the parity above would fail: nothing is loaded and then ignored."""
    config, weights, tokens, expected = ours.thaw(name)
    tokens, expected = tokens[:1, :12], expected[:1, :12]
    tied_head = {"lm_head.weight", "head.weight"} if config.get("tie_word_embeddings") else set()
    rng = np.random.default_rng(0)
    for key in sorted(weights.keys() - tied_head):
        noise = rng.standard_normal(weights[key].shape, dtype=np.float32)
        model = ours.load(config, weights | {key: weights[key] + 2 * noise})
        difference = np.abs(ours.logits(model, tokens) - expected).max()
        assert difference > TOLERANCE, f"{name}: {key} does not matter ({difference:.1e})"


@needs("torch", "transformers")
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 130)])
@pytest.mark.parametrize("name", libraries.TRANSFORMERS)
def test_upstream_logits_on_other_shapes(name, shape):
    upstream = libraries.transformers_model(name)
    model = ours.load(upstream.config.to_dict(), {k: v.numpy() for k, v in upstream.state_dict().items()})
    tokens = np.random.default_rng(1).integers(0, 32, shape).astype(np.int32)
    mx.eval(model.parameters())
    assert_close(ours.logits(model, tokens), libraries.transformers_logits(upstream, tokens))


@needs("torch", "rwkv")
@pytest.mark.parametrize("shape", [(1, 2), (1, 70)])
def test_rwkv7_logits_on_other_shapes(shape):
    tokens = np.random.default_rng(1).integers(0, 32, shape).astype(np.int32)
    found = libraries.rwkv7(tokens)
    assert_close(ours.logits(ours.load(found.config, found.weights), tokens), found.logits)


@needs("torch", "transformers")
@pytest.mark.parametrize("name", libraries.TRANSFORMERS)
def test_bf16_weights_give_upstream_bf16_logits(name):
    upstream = libraries.transformers_model(name)
    weights = {key: value.numpy().copy() for key, value in upstream.state_dict().items()}
    exact = libraries.transformers_logits(upstream, libraries.TOKENS)
    import torch

    half = libraries.transformers_model(name).to(torch.bfloat16)
    expected = libraries.transformers_logits(half, libraries.TOKENS)
    found = ours.logits(ours.load(upstream.config.to_dict(), weights, mx.bfloat16), libraries.TOKENS)
    error = np.abs(found - expected).max() / exact.std()
    upstream_error = np.abs(expected - exact).max() / exact.std()
    print(f"{name}: ours - upstream {error:.3f}, upstream - its fp32 {upstream_error:.3f}")
    assert error <= BF16_TOLERANCE


@needs("torch", "transformers")
def test_a_file_saved_after_rescaling_is_read_as_such():
    """RwkvForCausalLM divides its own weights at the first inference, and saves them divided."""
    upstream = libraries.transformers_model("rwkv-rescaled-tied")
    expected = libraries.transformers_logits(upstream, libraries.TOKENS)
    divided = {key: value.numpy() for key, value in upstream.state_dict().items()}
    config = upstream.config.to_dict()
    found = ours.logits(ours.load(config | {"weights_rescaled": True}, divided), libraries.TOKENS)
    assert_close(found, expected)
    wrong = ours.logits(ours.load(config, divided), libraries.TOKENS)
    assert np.abs(wrong - expected).max() > 100 * TOLERANCE


def test_rescaling_does_not_change_fp32_logits():
    config, weights, tokens, expected = ours.thaw("rwkv-rescaled-tied")
    found = ours.logits(ours.load(config | {"rescale_every": 0}, weights), tokens)
    assert_close(found, expected, 1e-3)
