"""Cross-entropy in nats, summed, with the number of tokens it is the sum of.

Sums and counts are what adds up over micro-batches, windows and machines; means do not. A target below zero
counts for nothing: `-1` is padding, `-2 - id` an id that is read and not scored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_map, tree_unflatten

from kssm_mlx.models.base import flatten
from kssm_mlx.ops.elementary import logsumexp

# Logits in memory at once: 64 MB in fp32.
MOST_LOGITS = 1 << 24


def chunk_for(batch: int, T: int, vocabulary: int) -> int | None:
    """Positions whose logits may stand in memory together; None where all of them may."""
    chunk = max(1, MOST_LOGITS // (batch * vocabulary))
    return None if chunk >= T else chunk


def split_rows(tokens: mx.array) -> tuple[mx.array, mx.array]:
    """(inputs, targets) of rows, the inputs as ids, padding as id 0.

    Shapes: [B, T+1], or of labelled rows [B, 2, T] -> [B, T], [B, T].
    """
    if tokens.ndim == 3:
        return tokens[:, 0], tokens[:, 1]
    ids = mx.where(tokens < -1, -2 - tokens, mx.maximum(tokens, 0))
    return ids[:, :-1], tokens[:, 1:]


def cut_rows(tokens: mx.array, start: int, stop: int | None = None) -> mx.array:
    """The rows of the targets from `start` up to `stop`, with what is read for them.

    Shapes: as `split_rows` takes them, with stop - start targets in place of T.
    """
    if tokens.ndim == 3:
        return tokens[:, :, start:stop]
    return tokens[:, start : None if stop is None else stop + 1]


def token_nats(logits: mx.array, targets: mx.array) -> mx.array:
    """-log p(target) per position in nats, fp32, 0 where the target is padding.

    Shapes:
        logits [..., V], targets int [...] -> [...]
    """
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.maximum(targets, 0)[..., None], axis=-1).squeeze(-1)
    return mx.where(targets >= 0, logsumexp(logits) - chosen, 0.0)


def cross_entropy(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """(summed nats fp32 [], tokens counted int32 []) of logits [..., V] against targets int [...]."""
    return mx.sum(token_nats(logits, targets)), mx.sum(targets >= 0).astype(mx.int32)


def chunked_cross_entropy(
    hidden: mx.array,
    head: Any,
    project: Callable[[mx.array, Any], mx.array],
    targets: mx.array,
    chunk: int,
) -> tuple[mx.array, mx.array]:
    """`cross_entropy(project(hidden, head), targets)` with the logits of only `chunk` positions in memory.

    head: the tree of trained arrays that `project` needs, {} where it has none; a gradient reaches it and
    `hidden`, nothing captured.
    The backward pass computes each chunk's logits again. Left to itself MLX would start the chunks together
    and hold every one; `mx.depends` makes each wait for the one before.

    Shapes:
        hidden [B, T, D], targets int [B, T] -> [], []
    """
    flat = flatten(head)
    names, leaves = list(flat), list(flat.values())
    spans = [slice(t, t + chunk) for t in range(0, targets.shape[1], chunk)]

    def nats_of(span: slice, part: mx.array, *leaves: mx.array) -> mx.array:
        logits = project(part, tree_unflatten(list(zip(names, leaves, strict=True))))
        return cross_entropy(logits, targets[:, span])[0]

    @mx.custom_function
    def total(hidden: mx.array, *leaves: mx.array) -> mx.array:
        nats = mx.array(0.0)
        for span in spans:
            nats = nats + nats_of(span, *mx.depends([hidden[:, span], *leaves], [nats]))
        return nats

    @total.vjp
    def total_vjp(primals, cotangent, _):
        hidden, *leaves = primals if names else [primals]  # of a single one there is no tuple
        # In fp32, since hundreds of chunks add up; the dtype of the weights comes back at the end.
        pieces, sums = [], [mx.zeros(leaf.shape, mx.float32) for leaf in leaves]
        for span in spans:
            # As in the forward pass: a chunk begins when the one before has given its gradients back.
            arguments = mx.depends([hidden[:, span], *leaves], sums + pieces[-1:])
            _, (piece, *grads) = mx.vjp(lambda *a, span=span: nats_of(span, *a), arguments, [cotangent])
            sums = [total + g for total, g in zip(sums, grads, strict=True)]
            pieces.append(piece)
        back = mx.concatenate(pieces, axis=1)
        return (back, *tree_map(lambda g, p: g.astype(p.dtype), sums, leaves)) if names else back

    nats = cast(mx.array, total(hidden, *leaves))  # custom_function does not say what it returns
    return nats, mx.sum(targets >= 0).astype(mx.int32)


def token_scores(logits: mx.array, targets: mx.array) -> mx.array:
    """Per position (`token_nats`, 1 where the target has the largest logit) as one array, 0 where not scored.

    Shapes:
        logits [..., V], targets int [...] -> fp32 [2, ...]
    """
    hits = mx.argmax(logits, axis=-1) == targets
    return mx.stack([token_nats(logits, targets), hits.astype(mx.float32)])


def chunked_token_scores(
    hidden: mx.array, project: Callable[[mx.array], mx.array], targets: mx.array, chunk: int
) -> mx.array:
    """`token_scores(project(hidden), targets)` with the logits of only `chunk` positions in memory.

    Shapes:
        hidden [B, T, D], targets int [B, T] -> [2, B, T]
    """
    pieces: list[mx.array] = []
    for t in range(0, targets.shape[1], chunk):
        span = slice(t, t + chunk)
        (part,) = mx.depends([hidden[:, span]], pieces[-1:]) if pieces else [hidden[:, span]]
        pieces.append(token_scores(project(part), targets[:, span]))
    return mx.concatenate(pieces, axis=2)
