"""What every recurrent model promises, as assertions about one model: states hand over, rows are alone."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from kssm_mlx.models.base import flatten
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from tests.support.small_kssm import assert_close

V, T = 17, 21


def tokens(B: int, T: int = T, seed: int = 0) -> mx.array:
    return mx.random.randint(0, V, (B, T), key=mx.random.key(seed))


def moved(model: nn.Module, by: float = 0.1) -> nn.Module:
    """Every parameter off its start, so that no zero hides what it multiplies."""
    flat = [
        (path, x + by * mx.random.normal(x.shape, key=mx.random.key(i)))
        for i, (path, x) in enumerate(tree_flatten(model.parameters()))
    ]
    model.update(tree_unflatten(flat))
    mx.eval(model.parameters())
    return model


def row_of(cache, b: int):
    return [[array[b : b + 1] for array in entry] for entry in cache]


def assert_cuts_do_not_matter(model: nn.Module) -> None:
    """In one call, in pieces, token by token; through `forward` and in place."""
    x = tokens(2)
    whole = model.forward(x)
    for cuts in ([1], [9, 16], list(range(1, T))):
        cache, logits = model.make_cache(), []
        for piece in mx.split(x, cuts, axis=1):
            logits.append(model(piece, cache))
        assert_close(mx.concatenate(logits, axis=1), whole.logits, 5e-5)
        assert_close(cache, whole.cache, 5e-5)


def assert_rows_are_alone(model: nn.Module) -> None:
    """Right-padded rows, an empty one among them, after a start that is not blank, too."""
    x, lengths = tokens(3), (T, 7, 0)
    for start in (None, model.forward(tokens(3, 4, seed=7)).cache):
        batch = model.forward(x, start, lengths=mx.array(lengths))
        for b, length in enumerate(lengths):
            own = None if start is None else row_of(start, b)
            if length:
                alone = model.forward(x[b : b + 1, :length], own)
                assert_close(batch.logits[b : b + 1, :length], alone.logits, 5e-5)
                assert_close(row_of(batch.cache, b), alone.cache, 5e-5)
            elif own:
                assert_close(row_of(batch.cache, b), own, 5e-5)
    blank = model.forward(x, lengths=mx.array(lengths)).cache
    assert_close(model.forward(x, blank).logits[2], model.forward(x).logits[2], 5e-5)


def assert_documents_are_alone(model: nn.Module) -> None:
    """D13: after A and a reset, B is exactly what B alone is; a reset in the padding is none."""
    x, starts = tokens(1), [3, 4, 15]
    resets = mx.array(np.isin(np.arange(T), starts))[None]
    before = model.forward(tokens(1, 4, seed=3)).cache
    packed = model.forward(x, before, resets=resets)
    for start, stop in zip(starts, [*starts[1:], T]):
        alone = model.forward(x[:, start:stop])
        assert_close(packed.logits[:, start:stop], alone.logits, 5e-5)
    assert_close(packed.cache, alone.cache, 5e-5)
    padded = model.forward(x, resets=mx.arange(T)[None] > 9, lengths=mx.array([8]))
    assert_close(padded.cache, model.forward(x[:, :8]).cache, 5e-5)


def assert_no_future(model: nn.Module) -> None:
    x = tokens(2)
    changed = mx.concatenate([x[:, :9], (x[:, 9:] + 1) % V], axis=1)
    assert_close(model(x)[:, :9], model(changed)[:, :9], 1e-5)
    assert mx.abs(model(x)[:, 9:] - model(changed)[:, 9:]).max().item() > 1e-3


def assert_learns(model: nn.Module, fresh: nn.Module, silent: tuple[str, ...] = ()) -> None:
    """A fresh model knows nothing and says so; a finite gradient reaches all parameters but `silent`."""
    x = tokens(4)

    def loss(m):
        return nn.losses.cross_entropy(m(x[:, :-1]), x[:, 1:]).mean()

    assert abs(loss(fresh).item() - math.log(V)) < 0.2
    gradients = dict(tree_flatten(nn.value_and_grad(model, loss)(model)[1]))
    assert all(mx.isfinite(g).all().item() for g in gradients.values())
    dead = {path for path, g in gradients.items() if not mx.abs(g).max().item() > 0}
    assert dead == {path for path in gradients if path.endswith(silent)} if silent else not dead, dead


def assert_checkpoints_change_nothing(model: nn.Module) -> None:
    """Recomputed activations give the same gradient."""
    x = tokens(2)

    def gradient():
        loss = lambda m: nn.losses.cross_entropy(m(x[:, :-1]), x[:, 1:]).mean()  # noqa: E731
        return nn.value_and_grad(model, loss)(model)[1]

    plain = gradient()
    model.checkpoint_blocks = True
    assert_close(gradient(), plain, 1e-6)


def count(model: nn.Module, but: str = "-") -> int:
    """Parameters, without those whose name holds `but`."""
    return sum(x.size for path, x in tree_flatten(model.parameters()) if but not in path)


def assert_it_alone_is_trained(model, start: str) -> None:
    """Six steps lower the loss by parameters whose names begin so; the model below keeps its bits."""
    train = Train(learning_rate=0.05, warmup=0, schedule="constant")
    frozen = {n: mx.array(a) for n, a in flatten(model.parameters()).items() if n.startswith("host.")}
    step, state, x = make_step(model, train, compile=False), initial_state(model, train), tokens(4, 9)
    assert frozen and all(n.startswith(start) for n in flatten(state.params))
    losses = []
    for _ in range(6):
        state, metrics = step(state, x)
        losses.append(metrics["loss"].item())
    assert losses[-1] < losses[0] - 1e-4
    model.update(state.params)
    after = flatten(model.parameters())
    assert all(mx.array_equal(after[n], a) for n, a in frozen.items())
