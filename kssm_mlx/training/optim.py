"""AdamW as two pure functions of trees of arrays, with the guards a recurrent model needs.

Moments are fp32 and bias-corrected; decay is decoupled and touches matrices only, unless the recipe says
otherwise; the gradient is clipped by its global norm; an update whose gradient is not finite is not made
(inside the compiled step, by selection). Components of a model may have a learning rate and a decay of their
own: `[train.groups]`, by the tags that `models.base.component_of` gives to parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map, tree_map_with_path

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.models.base import LanguageModel, component_of, flatten
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.steering_sections import Group

Tree = dict[str, Any]
BRANCHES = {"rwkv", "mamba", "attention"}  # where two of these meet, what reaches each is worth a column


class AdamW(NamedTuple):
    """The numbers of the optimizer.

    decays: the weight decay of each parameter; rates: what its learning rate is multiplied with. Both are
    trees of floats over the parameters.
    """

    beta1: float
    beta2: float
    epsilon: float
    decays: Tree
    rates: Tree


def adamw(model: LanguageModel, train: Train) -> AdamW:
    """The optimizer of this model under this recipe.

    Raises: ConfigError for a group of parameters that the model does not have.
    """
    params = model.trainable_parameters()
    tags = {name: component_of(model, name) for name in flatten(params)}
    for tag in train.groups:
        if tag not in tags.values():
            known = sorted(set(tags.values()))
            raise ConfigError(
                f"train.groups.{tag}: {model.model_type} trains no parameter tagged {tag!r}; it has "
                f"{', '.join(known)}{nearest(tag, known)}"
            )

    def group(name: str) -> Group:
        return train.groups.get(tags[name], Group())

    def decay(name: str, decays: bool) -> float:
        own = group(name).weight_decay
        return (train.weight_decay if own is None else own) if decays else 0.0

    spared = getattr(model, "no_decay", ())
    mask = decay_mask(params, spared) if train.decay == "matrices" else tree_map(lambda _: True, params)
    rates = tree_map_with_path(lambda name, _: group(name).learning_rate, params)
    return AdamW(train.beta1, train.beta2, train.epsilon, tree_map_with_path(decay, mask), rates)


def initial_moments(params: Tree) -> Tree:
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


def clip_gradient(grads: Tree, limit: float) -> tuple[Tree, mx.array]:
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

    def moved(p: mx.array, m: mx.array, v: mx.array, decay: float, rate: float) -> mx.array:
        direction = to_mean * m / (mx.sqrt(to_square * v) + adam.epsilon)
        return p - (lr if rate == 1 else rate * lr) * (direction + decay * p if decay else direction)

    params = tree_map(moved, params, m, v, adam.decays, adam.rates)
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
