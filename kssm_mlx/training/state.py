"""Everything a run is between two steps, as one tree of arrays.

Two runs with equal `TrainState` and equal recipe have equal futures (bitwise on CPU): no other state exists.
`to_arrays` and `from_arrays` turn it into the flat `{name: array}` that safetensors keeps, and back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_unflatten

from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.models.base import LanguageModel, flatten
from kssm_mlx.training.optimizers import updates
from kssm_mlx.training.recipe_sections import Train


class TrainState(NamedTuple):
    """What a step takes and gives back.

    Shapes:
        params, nested dict of fp32 master weights, named as the model's parameters; opt, the trees of
        `updates.initial_moments`; key uint32 [2], split once per step, for what is drawn beside the training
        (samples at an evaluation); step int32 [], updates attempted, which positions the schedule; cursor
        int32 [], batches consumed, which positions the data; carry, with `hand_off` the cache that the last
        batch left (a list per block of lists of arrays, batch first), otherwise None; knobs, dotted name ->
        [], what controllers turn between steps: parameters of the model that no gradient moves; buffers, the
        same of what the model names in `buffers`, which every forward pass replaces; rate [], what the
        learning rate of the schedule is multiplied with; average, with `ema` the running average of params,
        otherwise None.
    """

    params: dict[str, Any]
    opt: dict[str, Any]
    key: mx.array
    step: mx.array
    cursor: mx.array
    knobs: dict[str, mx.array]
    buffers: dict[str, mx.array]
    rate: mx.array
    carry: list | None = None
    average: dict[str, Any] | None = None

    @property
    def evaluated(self) -> dict[str, Any]:
        """The parameters that are scored, sampled from, checked and exported."""
        return self.params if self.average is None else self.average

    @property
    def untrained(self) -> dict[str, mx.array]:
        """What the model runs with beside the parameters that gradients move."""
        return {**self.knobs, **self.buffers}


def initial_state(model: LanguageModel, train: Train) -> TrainState:
    """The state before the first step: the model's trainable parameters in fp32, moments zero.

    Raises: ConfigError for a knob of the model that is not a frozen array [].
    """
    params = _sorted_tree(
        {name: _cast_to_master(a) for name, a in flatten(model.trainable_parameters()).items()}
    )
    state = TrainState(
        params=params,
        opt=updates.initial_moments(updates.make_optimizer(model, train), params),
        key=mx.random.key(train.seed),
        step=mx.array(0, mx.int32),
        cursor=mx.array(0, mx.int32),
        knobs=_read_knobs(model),
        buffers=buffers_of(model),
        rate=mx.array(1.0),
        average=None if train.ema is None else params,
    )
    mx.eval(state)
    return state


def with_knobs(params: dict[str, Any], knobs: dict[str, mx.array]) -> dict[str, Any]:
    """The tree a model runs with: what is trained and what is turned (or `TrainState.untrained`)."""
    return tree_unflatten([*flatten(params).items(), *knobs.items()]) if knobs else params


def buffers_of(model: LanguageModel) -> dict[str, mx.array]:
    """The model's buffers as they stand."""
    names = getattr(model, "buffers", ())
    arrays = flatten(model.parameters()) if names else {}
    return {name: arrays[name] for name in sorted(names)}


def to_arrays(state: TrainState) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """(model, rest): the parameters under the model's own names, everything else under the field's name.

    Names of the rest are such as `opt.m.layers.0.weight`, `key`, `carry.0.1`; no carry, no such name. Knobs
    and buffers are in both, and an average of the parameters is in the model and they in the rest: whoever
    loads the weights alone gets the model that was evaluated.
    """
    evaluated = "params" if state.average is None else "average"
    rest = {field: tree for field, tree in state._asdict().items() if field != evaluated and tree is not None}
    return {**flatten(state.evaluated), **state.untrained}, flatten(rest)


def from_arrays(model: dict[str, mx.array], rest: dict[str, mx.array]) -> TrainState:
    """The inverse of `to_arrays`. Raises: CheckpointError when a field is missing or unknown."""
    fields = _sorted_tree(rest)
    needed = {"opt", "key", "step", "cursor"}
    if missing := needed - fields.keys():
        raise CheckpointError(
            f"the optimizer file lacks {', '.join(sorted(missing))}; use an older checkpoint"
        )
    # A field that is not understood might be one that the next step depends on.
    if unknown := fields.keys() - needed - {"carry", "knobs", "buffers", "rate", "params"}:
        raise CheckpointError(
            f"the optimizer file holds unknown {', '.join(sorted(unknown))}; it is not ours"
        )
    knobs, buffers = (flatten(fields.pop(name, {})) for name in ("knobs", "buffers"))
    beside = knobs.keys() | buffers.keys()
    params = _sorted_tree({name: array for name, array in model.items() if name not in beside})
    if "params" in fields:
        fields = {**fields, "average": params}
    # Files that are older than the field have no rate.
    others: dict[str, Any] = {"rate": mx.array(1.0), "params": params, **fields}
    return TrainState(knobs=knobs, buffers=buffers, **others)


def _read_knobs(model: LanguageModel) -> dict[str, mx.array]:
    """The model's knobs as they stand. Raises: ConfigError as `initial_state`."""
    arrays, trained = flatten(model.parameters()), flatten(model.trainable_parameters())
    names = getattr(model, "knobs", ())
    for name in names:
        if name not in arrays or name in trained or arrays[name].ndim:
            raise ConfigError(
                f"{model.model_type} calls {name} a knob, which should be a frozen array [] among its "
                f"parameters; freeze it, or take it out of `knobs`"
            )
    return {name: arrays[name].astype(mx.float32) for name in sorted(names)}


def _sorted_tree(arrays: dict[str, mx.array]) -> dict[str, Any]:
    """The nested tree of a flat dict, sorted by name.

    Files return names in any order, and the order of leaves is the order in which the norm of the gradient
    is summed: without the sorting a resumed run would differ from an unbroken one in the last bit.
    """
    return tree_unflatten(sorted(arrays.items())) if arrays else {}


def _cast_to_master(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
