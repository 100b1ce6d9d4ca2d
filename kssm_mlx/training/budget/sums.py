"""What a run needs that can be summed from shapes, without allocating any of it.

weights      every parameter, as the model keeps it
optimizer    what it keeps of every trained parameter, of AdamW two fp32 moments; the parameter's fp32
             average where there is one, and its fp32 master where the model keeps less
gradients    of every trained parameter, fp32
checkpoint   trained parameters and what the optimizer keeps, on disk, each time it is saved
state        what one row hands from token to token
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from kssm_mlx.models.base import LanguageModel, component_of, flatten, head_of, sizes_of, training_mode
from kssm_mlx.training.optimizers import updates
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.recipe_sections import Train

FP32 = 4  # bytes


class Sums(NamedTuple):
    """Counts of parameters, and bytes."""

    trained: int
    frozen: int
    weights: int
    optimizer: int
    gradients: int
    checkpoint: int

    @property
    def least(self) -> int:
        """Bytes that are in memory together at every update, whatever the batch: a lower bound."""
        return self.weights + self.optimizer + self.gradients


class State(NamedTuple):
    """Bytes of one row: `first` after its first token, `growth` with each further one (0 of a recurrence)."""

    first: int
    growth: int

    def after(self, tokens: int) -> int:
        return self.first + self.growth * (tokens - 1)


def sum_bytes(model: LanguageModel, train: Train = Train()) -> Sums:  # noqa: B008  it is frozen
    """The sums of a model under training by the optimizer of `train`; its arrays need not be evaluated.

    Raises: ConfigError as `make_optimizer`.
    """
    arrays, trained = flatten(model.parameters()), flatten(model.trainable_parameters())
    size = sum(a.size for a in trained.values())
    masters = sum(FP32 * a.size for a in trained.values() if a.dtype.size < FP32)
    kept = FP32 * sum(a.size for a in _moments(model, train).values()) + (FP32 * size if train.ema else 0)
    beside = {*getattr(model, "knobs", ()), *getattr(model, "buffers", ())}
    return Sums(
        trained=size,
        frozen=sum(sizes_of(model).values()) - size,
        weights=sum(a.nbytes for a in arrays.values()),
        optimizer=kept + masters,
        gradients=FP32 * size,
        # What is turned and not trained is in both files of a checkpoint.
        checkpoint=FP32 * size + kept + 2 * sum(arrays[name].nbytes for name in beside),
    )


def _moments(model: LanguageModel, train: Train) -> dict[str, mx.array]:
    """What the optimizer keeps of parameters; never evaluated."""
    opt = updates.initial_moments(updates.make_optimizer(model, train), model.trainable_parameters())
    return {name: array for name, array in flatten(opt).items() if name not in updates.COUNTS}


def state_bytes(model: LanguageModel) -> State:
    """What a row carries. The shapes are read off a pass that is never evaluated."""
    with training_mode(model, training=False):
        one, two = (_cache_bytes(model, T) for T in (1, 2))
    return State(one, two - one)


def _cache_bytes(model: LanguageModel, T: int) -> int:
    return sum(a.nbytes for a in flatten(model.forward(mx.zeros((1, T), mx.int32)).cache).values())


def kept_checkpoints(recipe: Recipe) -> tuple[int, int]:
    """(at least, at most) how many checkpoints are on the disk at once.

    At most: those kept, the best, and the one being written before the oldest goes.
    """
    saves = -(-recipe.train.steps // recipe.save.every)
    return min(saves, recipe.save.keep), min(saves, recipe.save.keep + 2)


def product_flops(model: LanguageModel, train: Train | None = None) -> int:
    """FLOPs per token of the products with matrices, of a training step or (None) of a forward pass.

    Two per weight forward and four backward, two of these where the weight is frozen; two more where a block
    is computed again. Recurrences, attention over the context, norms and the optimizer are not counted.
    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1.
    """
    arrays, trained = flatten(model.parameters()), flatten(model.trainable_parameters())
    tag, tags = "embedding", {name: component_of(model, name) for name, a in arrays.items() if a.ndim >= 2}
    head = flatten(head_of(model, {})).keys()  # the embedding's where tied; otherwise it is only looked up
    sizes = {name: n for name, n in sizes_of(model).items() if name in head or tags.get(name, tag) != tag}
    if train is None:
        return 2 * sum(sizes.values())
    again = 2 if train.checkpoint_blocks else 0
    return sum(
        n * ((6 if name in trained else 4) + (0 if name in head else again)) for name, n in sizes.items()
    )
