"""The size of a gradient: its norm, that of each component, and the limit that it is scaled down to."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map, tree_map_with_path

from kssm_mlx.models.base import LanguageModel, component_of, flatten

Tree = dict[str, Any]
Limits = dict[str, tuple[float, list[str]]]  # tag -> the largest norm of its gradient, its parameters
BRANCHES = {"rwkv", "mamba", "attention"}  # where two of these meet, what reaches each is worth a column


def global_norm(tree: Any) -> mx.array:
    """The Euclidean norm of all leaves together, fp32 []."""
    squares = (mx.sum(mx.square(leaf.astype(mx.float32))) for leaf in flatten(tree).values())
    return mx.sqrt(sum(squares, start=mx.array(0.0)))


def component_rms(model: LanguageModel, grads: Tree, always: bool) -> dict[str, mx.array]:
    """`grad_rms_rwkv`, ...: sqrt(mean g²) over the parameters of each tag, fp32 [].

    Only for a model in which two kinds of mixer meet, unless `always`. A mean, so that components of
    different size compare (a ratio of norms grows with the number of parameters).
    """
    members: dict[str, list[mx.array]] = {}
    for name, gradient in flatten(grads).items():
        members.setdefault(component_of(model, name), []).append(gradient)
    if not always and len(BRANCHES & members.keys()) < 2:
        return {}
    sizes = {tag: sum(g.size for g in found) for tag, found in members.items()}
    return {f"grad_rms_{tag}": global_norm(members[tag]) * sizes[tag] ** -0.5 for tag in sorted(members)}


def clip_gradient(grads: Tree, limit: float, own: Limits | None = None) -> tuple[Tree, mx.array]:
    """(gradients scaled down to a global norm of at most `limit`, their norm before); first those of each
    component that has a limit of its `own` to that.
    """
    norm = now = global_norm(grads)
    if own:
        grads = _clip_components(grads, own)
        now = global_norm(grads)
    scale = mx.minimum(1.0, limit / mx.maximum(now, 1e-12))
    return tree_map(lambda g: g * scale, grads), norm


def _clip_components(grads: Tree, limits: Limits) -> Tree:
    flat, scales = flatten(grads), {}
    for limit, names in limits.values():
        norm = global_norm([flat[name] for name in names])
        scales |= dict.fromkeys(names, mx.minimum(1.0, limit / mx.maximum(norm, 1e-12)))
    return tree_map_with_path(lambda name, g: g * scales[name] if name in scales else g, grads)
