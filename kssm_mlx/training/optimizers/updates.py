"""The optimizer of a recipe as pure functions of trees of arrays, with the guards a recurrent model needs.

`rules` has the directions in which AdamW, Lion, Adafactor and Muon move. Whichever it is, decay is decoupled
and touches matrices only, unless the recipe says otherwise; an update whose gradient is not finite is not
made (inside the compiled step, by selection). Components of a model may have a learning rate, a decay and a
limit of their own: `[train.groups]`, by the tags that `models.base.component_of` gives to parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map, tree_map_with_path, tree_unflatten

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.models.base import LanguageModel, component_of, flatten
from kssm_mlx.training.optimizers.gradients import Limits
from kssm_mlx.training.optimizers.rules import Rule, choose_rule
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.steering_sections import Group

Tree = dict[str, Any]
OUTER = {"embedding", "head"}  # rows of these stand for tokens, they map no hidden state to another
COUNTS = {"count", "skips"}  # what an optimizer keeps beside the slots of its rules


class Optimizer(NamedTuple):
    """train: the numbers of its rules. The rest is of each parameter, by its dotted name: rules, which rule
    moves it; decays, its weight decay; rates, what its learning rate is multiplied with. limits: tag of a
    component with a `clip_norm` -> that and its parameters.
    """

    train: Train
    rules: dict[str, Rule]
    decays: dict[str, float]
    rates: dict[str, float]
    limits: Limits


def make_optimizer(model: LanguageModel, train: Train) -> Optimizer:
    """The optimizer of this model under this recipe; the parameters need not be evaluated.

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

    def decay(name: str) -> float:
        own = group(name).weight_decay
        return (train.weight_decay if own is None else own) if decays[name] else 0.0

    matrices = flatten(decay_mask(params, getattr(model, "no_decay", ())))
    decays = matrices if train.decay == "matrices" else dict.fromkeys(tags, True)
    return Optimizer(
        train=train,
        rules={
            name: choose_rule(train, p.shape, bool(matrices[name]) and tags[name] not in OUTER)
            for name, p in flatten(params).items()
        },
        decays={name: decay(name) for name in tags},
        rates={name: group(name).learning_rate for name in tags},
        limits={
            tag: (of.clip_norm, [name for name in tags if tags[name] == tag])
            for tag, of in train.groups.items()
            if of.clip_norm is not None
        },
    )


def initial_moments(optimizer: Optimizer, params: Tree) -> Tree:
    """Before the first update: count, updates made; skips, updates refused in a row up to now; and what the
    rules keep, zero, by slot: a tree like that of the parameters, without those that have no such slot.
    """
    slots = {name: optimizer.rules[name].begin(p) for name, p in flatten(params).items()}
    return {"count": mx.array(0, mx.int32), "skips": mx.array(0, mx.int32), **_by_slot(slots)}


def _by_slot(slots: dict[str, dict[str, mx.array]]) -> Tree:
    """Name -> slot -> array as a tree for each slot."""
    names = sorted({slot for own in slots.values() for slot in own})
    return {
        slot: tree_unflatten(sorted((name, own[slot]) for name, own in slots.items() if slot in own))
        for slot in names
    }


def decay_mask(params: Tree, no_decay: tuple[str, ...]) -> Tree:
    """True for matrices whose name does not end in one of `no_decay`: gains, phases, rates never decay."""
    return tree_map_with_path(lambda name, p: p.ndim >= 2 and not name.endswith(tuple(no_decay)), params)


def update(optimizer: Optimizer, params: Tree, grads: Tree, opt: Tree, lr: mx.array) -> tuple[Tree, Tree]:
    """(parameters, opt) after one update at learning rate `lr`, an array []: p - lr (direction + decay p)."""
    count = opt["count"] + 1
    n, gradients, slots = count.astype(mx.float32), flatten(grads), _by_name(opt)
    direct = {rule: rule.prepare(optimizer.train, n) for rule in dict.fromkeys(optimizer.rules.values())}
    kept: dict[str, dict[str, mx.array]] = {}

    def update_parameter(name: str, p: mx.array) -> mx.array:
        direction, kept[name] = direct[optimizer.rules[name]](gradients[name], slots[name])
        decay, rate = optimizer.decays[name], optimizer.rates[name]
        return p - (lr if rate == 1 else rate * lr) * (direction + decay * p if decay else direction)

    params = tree_map_with_path(update_parameter, params)
    return params, {"count": count, "skips": mx.zeros_like(opt["skips"]), **_by_slot(kept)}


def _by_name(opt: Tree) -> dict[str, dict[str, mx.array]]:
    """The inverse of `_by_slot`."""
    slots: dict[str, dict[str, mx.array]] = {}
    for slot in opt.keys() - COUNTS:
        for name, array in flatten(opt[slot]).items():
            slots.setdefault(name, {})[slot] = array
    return slots


def update_if(
    finite: mx.array, optimizer: Optimizer, params: Tree, grads: Tree, opt: Tree, lr: mx.array
) -> tuple[Tree, Tree]:
    """`update` where `finite` [] is True; elsewhere nothing moves but the count of skips in a row."""
    moved, advanced = update(optimizer, params, grads, opt, lr)
    kept = {**opt, "skips": opt["skips"] + 1}
    return choose(finite, moved, params), choose(finite, advanced, kept)


def choose(condition: mx.array, new: Tree, old: Tree) -> Tree:
    """`new` where the condition [] holds, `old` elsewhere."""
    return tree_map(lambda a, b: mx.where(condition, a, b), new, old)
