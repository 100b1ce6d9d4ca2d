"""The transformer keeps the promises of a recurrence, and is GPT-2 and the clamp experiment's model."""

import importlib.util

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.attention import Attention, rotate
from kssm_mlx.models.base import Clamp, Intervention
from kssm_mlx.models.transformer import Transformer, TransformerConfig
from tests.parity import gpt2
from tests.support.small_kssm import assert_close

pytestmark = pytest.mark.usefixtures("uncompiled")
V, T = 17, 24
SMALL = {"vocab_size": V, "d_model": 16, "n_layers": 2, "n_heads": 2, "context": 40}
VARIANTS = {
    "gpt2": {},
    "post": {"norm": "post", "activation": "relu", "tie_embeddings": False, "head_bias": True, "d_ff": 16},
    "rotary without feed-forward": {"positions": "rotary", "d_ff": 0, "bias": False},
    "post without feed-forward": {"norm": "post", "d_ff": 0, "positions": "none"},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def awake(name: str, **overrides) -> Transformer:
    """Every parameter moved off its start, so that no zero hides what it multiplies."""
    model = Transformer(TransformerConfig(**SMALL | VARIANTS[name] | overrides), seed=1)
    moved = [
        (path, x + 0.2 * mx.random.normal(x.shape, key=mx.random.key(i)))
        for i, (path, x) in enumerate(tree_flatten(model.parameters()))
    ]
    model.load_weights(moved)
    return model


def tokens(B: int, T: int, seed: int = 0) -> mx.array:
    return mx.random.randint(0, V, (B, T), key=mx.random.key(seed))


def in_pieces(model, x, cuts, **options):
    cache, logits = model.make_cache(), []
    for piece in mx.split(x, cuts, axis=1):
        out = model.forward(piece, cache, **options)
        cache = out.cache
        logits.append(out.logits)
    return mx.concatenate(logits, axis=1), cache


@every_variant
def test_the_cache_is_the_text_before_wherever_it_is_cut(name):
    model, x = awake(name), tokens(2, T)
    whole = model.forward(x)
    for cuts in ([1], [7, 8, 20], list(range(1, T))):
        logits, cache = in_pieces(model, x, cuts)
        assert_close(logits, whole.logits)
        assert_close(cache, whole.cache)


@every_variant
def test_no_token_sees_its_future_unless_the_legacy_is_asked_for(name):
    x = tokens(2, T)
    changed = mx.concatenate([x[:, :9], (x[:, 9:] + 1) % V], axis=1)
    causal, legacy = awake(name), awake(name, causal=False)
    assert mx.array_equal(causal(x)[:, :9], causal(changed)[:, :9]).item()
    assert mx.abs(legacy(x)[:, :9] - legacy(changed)[:, :9]).max().item() > 1e-2


@every_variant
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(0, T), min_size=1, max_size=4))
def test_a_row_of_a_batch_gets_what_it_would_get_alone(name, lengths):
    """Also what comes after: the padding of one call is not seen by the next."""
    model, B = awake(name), len(lengths)
    x, more = tokens(B, T), tokens(B, 5, seed=1)
    batch = model.forward(x, lengths=mx.array(lengths))
    after = model.forward(more, batch.cache)
    for row, length in enumerate(lengths):
        alone = model.forward(mx.concatenate([x[row : row + 1, :length], more[row : row + 1]], axis=1))
        assert_close(batch.logits[row, :length], alone.logits[0, :length])
        assert_close(after.logits[row], alone.logits[0, length:])


@every_variant
def test_a_document_never_sees_the_one_before(name):
    """Exactly what it would be alone, cut or not, and its successor's positions count from its own start."""
    model, x, starts = awake(name), tokens(1, T), [5, 6, 17]
    resets = mx.array(np.isin(np.arange(T), starts))[None]
    before = model.forward(tokens(1, 4, seed=3)).cache
    packed = model.forward(x, before, resets=resets)
    for start, stop in zip(starts, [*starts[1:], T]):
        assert_close(packed.logits[:, start:stop], model.forward(x[:, start:stop]).logits)
    more = tokens(1, 6, seed=4)
    alone = model.forward(mx.concatenate([x[:, 17:], more], axis=1)).logits[:, T - 17 :]
    assert_close(model.forward(more, packed.cache).logits, alone)


def test_a_text_longer_than_the_learned_positions_is_refused():
    model = awake("gpt2")
    cache = model.forward(tokens(1, 30)).cache
    with pytest.raises(ConfigError, match="41 tokens do not fit into the context of 40 with learned pos"):
        model.forward(tokens(1, 11), cache)
    assert awake("rotary without feed-forward").forward(tokens(1, 50)).logits.shape == (1, 50, V)


def sliding(x, **options):
    attention = Attention(mx.random.key(0), 16, 2, rotary=True, reach=7)
    return attention(x, options.get("entry", [None] * 3), options.get("resets"), options.get("lengths"))


def test_a_sliding_window_has_a_state_of_fixed_size_and_the_same_promises():
    """Cut anywhere, padded anywhere, reset anywhere, a token sees itself and the seven before it."""
    x = mx.random.normal((2, T, 16), key=mx.random.key(2))
    y, whole = sliding(x)
    assert [z.shape for z in whole] == [(2, 7, 2, 8), (2, 7, 2, 8), (2, 7)]
    near, _ = sliding(x[:, 12 - 7 :])
    assert_close(near[:, 7], y[:, 12])
    first, entry = sliding(x[:, :10])
    second, entry = sliding(x[:, 10:], entry=entry)
    assert_close(mx.concatenate([first, second], axis=1), y)
    assert_close(entry, whole)
    _, ragged = sliding(x, lengths=mx.array([T, 4]))
    assert_close([z[1:] for z in ragged], sliding(x[1:, :4])[1])
    resets = mx.broadcast_to(mx.arange(T) == 20, (2, T))
    after, entry = sliding(x, resets=resets)
    alone, own = sliding(x[:, 20:])
    assert_close(after[:, 20:], alone)
    assert_close(entry, own)


def test_a_rotation_keeps_lengths_and_only_distance_matters():
    q, k = mx.random.normal((2, 1, 1, 1, 8), key=mx.random.key(0))
    at = [mx.array([[p]]) for p in (3, 5, 103, 105)]
    scores = [(rotate(q, at[i]) * rotate(k, at[i + 1])).sum().item() for i in (0, 2)]
    assert abs(scores[0] - scores[1]) < 1e-4
    assert abs(mx.linalg.norm(rotate(q, at[2])).item() - mx.linalg.norm(q).item()) < 1e-5


@every_variant
def test_clamped_heads_are_taken_out_and_a_clamped_block_too(name):
    model, x = awake(name), tokens(2, T)
    all_heads = model.forward(x, intervention=Intervention((Clamp("heads", 0.0, units=(0, 1)),)))
    silent = awake(name)
    for block in silent.layers:
        block.attention.out.weight = mx.zeros_like(block.attention.out.weight)
    assert_close(all_heads.logits, silent(x))
    one = model.forward(x, intervention=Intervention((Clamp("heads", 0.0, block=0, units=(1,), start=9),)))
    assert_close(one.logits[:, :9], model(x)[:, :9])
    assert mx.abs(one.logits[:, 9] - model(x)[:, 9]).max().item() > 1e-3
    gone = model.forward(x, intervention=Intervention((Clamp("output", 0.0),)))
    assert_close(gone.logits, model.project(model.finish(model.enter(x, None, None, None, None)[0])))


def test_dropout_is_the_keys_in_training_and_nothing_in_evaluation():
    model, x = awake("post", dropout=0.5), tokens(2, T)
    plain = awake("post")(x)
    assert model.stochastic and not awake("post").stochastic
    one, again, other = (model.forward(x, key=mx.random.key(k)).logits for k in (0, 0, 1))
    assert mx.array_equal(one, again).item() and not mx.allclose(one, other).item()
    assert not mx.allclose(one, plain).item()
    model.eval()
    assert mx.array_equal(model.forward(x, key=mx.random.key(0)).logits, plain).item()


@every_variant
def test_every_parameter_has_a_gradient_and_the_fresh_loss_is_the_uniform_one(name):
    config = TransformerConfig(**SMALL | VARIANTS[name])
    x = tokens(4, T)

    def loss(model):
        return nn.losses.cross_entropy(model(x[:, :-1]), x[:, 1:]).mean()

    assert abs(loss(Transformer(config)).item() - np.log(V)) < 0.2
    model = awake(name)
    _, gradients = nn.value_and_grad(model, loss)(model)
    flat = dict(tree_flatten(gradients))
    assert not [p for p, g in flat.items() if not (mx.isfinite(g).all() & (mx.abs(g).max() > 0)).item()]
    plain = {p: np.array(g) for p, g in flat.items()}
    model.checkpoint_blocks = True
    for path, g in tree_flatten(nn.value_and_grad(model, loss)(model)[1]):
        assert_close(g, plain[path])


COUNTS = {40: 346_976, 80: 709_056, 128: 1_168_896}


@pytest.mark.parametrize("d", COUNTS)
def test_the_model_of_the_clamp_experiment_has_its_parameters(d):
    """One layer, four heads, post-norm, ReLU, d_ff = d, biases, untied, 4096 ids."""
    post = {"norm": "post", "activation": "relu", "tie_embeddings": False, "head_bias": True, "dropout": 0.1}
    config = TransformerConfig(4096, d_model=d, n_layers=1, n_heads=4, d_ff=d, context=128, **post)
    assert count(Transformer(config)) == COUNTS[d]


def test_the_gpt2_of_the_hybrid_study_has_its_parameters():
    """8 x 192, 4 heads, 1024 positions, tied, stated as 6.81M at a vocabulary of 16k."""
    model = Transformer(TransformerConfig(16_000, d_model=192, n_layers=8, context=1024, bias=False))
    assert count(model) == 6_810_816


def count(model) -> int:
    return sum(x.size for _, x in tree_flatten(model.parameters()))


def test_the_logits_are_gpt2s():
    """Frozen: weights and logits of GPT2LMHeadModel, tiny and random."""
    weights, x, expected = gpt2.thaw()
    assert np.abs(gpt2.logits(weights, x) - expected).max() < 1e-4


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="upstream needs torch and transformers; pip install them",
)
def test_the_logits_are_what_transformers_computes_now():
    weights, x, expected = gpt2.upstream(rows=3, length=31, seed=5)
    assert np.abs(gpt2.logits(weights, x) - expected).max() < 1e-4
