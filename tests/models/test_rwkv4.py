"""RWKV-4: configurations as they are published, rescaling, the start of the author's code."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.recurrent import orthogonal
from kssm_mlx.models.rwkv4 import RWKV4, RWKV4Config, preset
from tests.support.base_models import base_model, tokens

RWKV_4_169M_PILE = {
    "architectures": ["RwkvForCausalLM"],
    "model_type": "rwkv",
    "attention_hidden_size": 768,
    "context_length": 1024,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_epsilon": 1e-05,
    "num_hidden_layers": 12,
    "rescale_every": 6,
    "tie_word_embeddings": False,
    "vocab_size": 50277,
}


def test_the_published_configuration_of_169m():
    config = RWKV4Config.from_huggingface(RWKV_4_169M_PILE)
    assert (config.channels, config.wide, config.rescale_every) == (768, 3072, 6)


def test_a_file_without_a_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="no 'vocab_size'"):
        RWKV4Config.from_huggingface({k: v for k, v in RWKV_4_169M_PILE.items() if k != "vocab_size"})


def test_rescaling_halves_the_stream_and_not_the_logits():
    model, x = base_model("rwkv"), tokens(2, 9)
    config = RWKV4Config(**{**vars(model.args), "rescale_every": 0})
    plain = RWKV4(config)
    plain.update(model.parameters())
    np.testing.assert_allclose(np.array(model(x)), np.array(plain(x)), atol=1e-3)

    def stream(m):
        x_, carried = m.embed(x), None
        for block in m.layers:
            x_, _, carried, _ = block(x_, [None] * 5, carried, None, None)
        return np.array(x_)

    np.testing.assert_allclose(4 * stream(model), stream(plain), rtol=1e-3, atol=1e-3)


def test_the_start_spans_all_time_scales_and_adds_nothing():
    model = RWKV4(preset("s", 64, 128))
    decay = np.exp(-np.exp(np.array(model.layers[1].attention.time_decay)))
    assert decay.max() > 0.99 and decay.min() < 1e-3
    out = model.forward(tokens(1, 5))
    alone = model.project(model.finish(model.layers[0].pre_ln(model.embed(tokens(1, 5)))))
    np.testing.assert_allclose(np.array(out.logits), np.array(alone), atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(6, 4), (4, 6), (5, 5)])
def test_orthogonal_is_orthogonal(rows, columns):
    q = np.array(orthogonal(mx.random.key(0), rows, columns, gain=2.0))
    gram = q @ q.T if rows < columns else q.T @ q
    np.testing.assert_allclose(gram, 4 * np.eye(min(rows, columns)), atol=1e-5)
