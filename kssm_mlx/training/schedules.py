"""Learning rates as pure functions: step array in, learning-rate array out; nothing to save or restore.

    lr(step) = peak · warm-up(step) · (f + (1 - f) · shape(progress)),   f = final_fraction

Warm-up rises linearly to 1 over `warmup` steps; progress runs from 0 at its end to 1 at the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from kssm_mlx.training.recipe_sections import Train

DECAY_SHARE = 0.2  # of the steps after warm-up, in which wsd comes down


def cosine(progress: mx.array) -> mx.array:
    """Half a cosine from 1 to 0. Source: Loshchilov and Hutter 2017 (SGDR), eq. 5, one cycle."""
    return 0.5 * (1 + mx.cos(math.pi * progress))


def linear(progress: mx.array) -> mx.array:
    """A straight line from 1 to 0."""
    return 1 - progress


def constant(progress: mx.array) -> mx.array:
    """1 throughout."""
    return mx.ones_like(progress)


def wsd(progress: mx.array) -> mx.array:
    """Warm-up, stable, decay: 1, then a line to 0. Source: Hu et al. 2024 (MiniCPM), section 4."""
    return mx.minimum(1.0, (1 - progress) / DECAY_SHARE)


SHAPES: dict[str, Callable[[mx.array], mx.array]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "wsd": wsd,
}


def schedule(train: Train) -> Callable[[mx.array], mx.array]:
    """The learning rate of this recipe as a function of the step (any shape of integer array, fp32 out)."""
    shape, floor = SHAPES[train.schedule], train.final_fraction
    span = max(1, train.steps - 1 - train.warmup)

    def learning_rate(step: mx.array) -> mx.array:
        t = step.astype(mx.float32)
        warm = mx.minimum(1.0, (t + 1) / max(1, train.warmup))
        progress = mx.clip((t - train.warmup) / span, 0.0, 1.0)
        return train.learning_rate * warm * (floor + (1 - floor) * shape(progress))

    return learning_rate
