"""AdamW as two pure functions of trees of arrays, with the guards a recurrent model needs.

Moments are fp32 and bias-corrected; decay is decoupled and touches matrices only; the gradient is clipped by
its global norm; an update whose gradient is not finite is not made (inside the compiled step, by selection).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

Tree = dict[str, Any]


class AdamW(NamedTuple):
    """The numbers of the optimizer; `decays` is a tree of bools over the parameters (`decay_mask`)."""

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    decays: Tree


def initial(params: Tree) -> Tree:
    """Moments of zero; count, updates made; skips, updates refused in a row up to now."""
    return {
        "count": mx.array(0, mx.int32),
        "m": tree_map(mx.zeros_like, params),
        "skips": mx.array(0, mx.int32),
        "v": tree_map(mx.zeros_like, params),
    }


def decay_mask(params: Tree, no_decay: tuple[str, ...]) -> Tree:
    """True for matrices whose name does not end in one of `no_decay`: gains, phases, rates never decay."""
    return tree_map_with_path(lambda name, p: p.ndim >= 2 and not name.endswith(tuple(no_decay)), params)


def global_norm(tree: Tree) -> mx.array:
    """The Euclidean norm of all leaves together, fp32 []."""
    leaves = [leaf for _, leaf in tree_flatten(tree)]
    return mx.sqrt(sum(mx.sum(mx.square(leaf.astype(mx.float32))) for leaf in leaves))


def clip(grads: Tree, limit: float) -> tuple[Tree, mx.array]:
    """(gradients scaled down to a global norm of at most `limit`, their norm before)."""
    norm = global_norm(grads)
    scale = mx.minimum(1.0, limit / mx.maximum(norm, 1e-12))
    return tree_map(lambda g: g * scale, grads), norm


def update(adam: AdamW, params: Tree, grads: Tree, opt: Tree, lr: mx.array) -> tuple[Tree, Tree]:
    """(parameters, opt) after one step of AdamW at learning rate `lr` (an array []).

    Source: Loshchilov and Hutter 2019, algorithm 2 with the decay scaled by the learning rate.
    """
    count = opt["count"] + 1
    n = count.astype(mx.float32)
    to_mean = 1 / (1 - adam.beta1**n)
    to_square = 1 / (1 - adam.beta2**n)
    m = tree_map(lambda m, g: adam.beta1 * m + (1 - adam.beta1) * g, opt["m"], grads)
    v = tree_map(lambda v, g: adam.beta2 * v + (1 - adam.beta2) * mx.square(g), opt["v"], grads)

    def moved(p: mx.array, m: mx.array, v: mx.array, decays: bool) -> mx.array:
        direction = to_mean * m / (mx.sqrt(to_square * v) + adam.epsilon)
        return p - lr * (direction + adam.weight_decay * p if decays else direction)

    params = tree_map(moved, params, m, v, adam.decays)
    return params, {"count": count, "m": m, "skips": mx.zeros_like(opt["skips"]), "v": v}


def update_if(
    finite: mx.array, adam: AdamW, params: Tree, grads: Tree, opt: Tree, lr: mx.array
) -> tuple[Tree, Tree]:
    """`update` where `finite` [] is True; elsewhere nothing moves but the count of skips in a row."""
    moved, advanced = update(adam, params, grads, opt, lr)
    kept = {**opt, "skips": opt["skips"] + 1}

    def select(new: Tree, old: Tree) -> Tree:
        return tree_map(lambda a, b: mx.where(finite, a, b), new, old)

    return select(moved, params), select(advanced, kept)
