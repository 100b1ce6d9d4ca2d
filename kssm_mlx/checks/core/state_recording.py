"""The states of a model as it reads, token by token, and how they are set: what checks of memory share.

A memory is an array that a block carries from token to token, by its name: "block 1" where it has one,
"block 1 mamba" and "block 1 rwkv" where two meet. The last inputs of convolutions and token shifts are no
memories, and a list of keys that grows with the text is no state.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.core.probes import to_numpy
from kssm_mlx.checks.core.registry import NotMeasurable
from kssm_mlx.models.base import Cache, training_mode
from kssm_mlx.models.recurrent import RecurrentModel

MEMORIES = ("state", "mamba", "rwkv", "arbiter")  # slots of a cache entry

Views = dict[str, mx.array]


def record_states(model: Any, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Every memory after every token, in evaluation mode. Shapes: tokens [B, T] -> [B, T, n] each.

    Raises: NotMeasurable for a model without a state.
    """
    refuse_stateless(model)
    cache, steps = model.make_cache(), []
    with training_mode(model, False):
        for token in np.split(tokens, tokens.shape[1], axis=1):
            cache = model.forward(mx.array(token), cache).cache
            steps.append({name: to_numpy(view) for name, view in view_states(model, cache).items()})
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


def refuse_stateless(model: Any) -> None:
    """Raises: NotMeasurable for a model that carries nothing, or a list that grows."""
    if not hasattr(model, "make_cache") or not hasattr(model, "forward"):
        raise NotMeasurable("the model has no make_cache() and forward(), so no state is seen")
    if getattr(model, "memoryless", False) or not any(map(len, model.make_cache())):
        raise NotMeasurable("the model carries no state from token to token, see C1")


def view_states(model: Any, cache: Cache) -> Views:
    """The memories in a cache, of a graft those of its base model. Shapes: [B, n] each.

    Raises: NotMeasurable where there is none.
    """
    model, found = getattr(model, "host", model), {}
    for i, entry in enumerate(cache):
        own = _slots(model, i)
        for name in own:
            found[f"block {i}{'' if len(own) == 1 else f' {name}'}"] = _view(model, i, entry, name)
    if not found:
        raise NotMeasurable("the model keeps what it has read in a list that grows, not in a state")
    return found


def with_views(model: Any, cache: Cache, changed: Views) -> Cache:
    """The cache with its memories set, everything else as it is."""
    model, new, left = getattr(model, "host", model), [], iter(changed.values())
    for i, entry in enumerate(cache):
        for name in _slots(model, i):
            entry = _with_view(model, i, entry, name, next(left))
        new.append(entry)
    return new


def _slots(model: Any, i: int) -> tuple[str, ...]:
    """The memories of block i; "" stands for the model's own view, or for all that a foreign model has."""
    if not hasattr(model, "slots_of") or _own_view(model):
        return ("",)
    return tuple(name for name in model.slots_of(i) if name in MEMORIES)


def _own_view(model: Any) -> bool:
    return getattr(type(model), "state_view", None) not in (None, RecurrentModel.state_view)


def _view(model: Any, i: int, entry: Any, name: str) -> mx.array:
    if name:
        return entry[model.slots_of(i).index(name)].flatten(1)
    if _own_view(model):
        return model.state_view(entry)
    return mx.concatenate([a.flatten(1) for a in _arrays(entry)], axis=1)


def _with_view(model: Any, i: int, entry: Any, name: str, view: mx.array) -> list:
    if name:
        at = model.slots_of(i).index(name)
        return [*entry[:at], view.reshape(entry[at].shape).astype(entry[at].dtype), *entry[at + 1 :]]
    if _own_view(model):
        return model.with_state(entry, view)
    cuts = np.cumsum([a.size // a.shape[0] for a in _arrays(entry)])[:-1].tolist()
    parts = iter(mx.split(view, cuts, axis=1))
    return [next(parts).reshape(a.shape) if _is_state(a) else a for a in entry]


def _arrays(entry: Any) -> list[mx.array]:
    return [a for a in entry if _is_state(a)]


def _is_state(a: Any) -> bool:
    return isinstance(a, mx.array) and a.ndim > 1 and mx.issubdtype(a.dtype, mx.floating)
