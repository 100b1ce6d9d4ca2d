"""The optimizers by name: what each keeps of a parameter, and the direction it moves it in.

A direction is what is subtracted from a parameter, times the learning rate; weight decay is added by the
caller and is none of a rule's business. That of AdamW, Adafactor and Muon has a root mean square of about 1
and at most a few, so one learning rate fits all three; every entry of Lion's is -1 or 1, for which its paper
takes a learning rate 3 to 10 times smaller and a decay as many times larger.

    adamw      m / (sqrt(v) + epsilon), both moments bias-corrected            keeps 2 numbers per parameter
    lion       sign(beta1 m + (1 - beta1) g)                                   1
    adafactor  g / sqrt(v), v of a matrix from the means of its rows and columns; no momentum      almost 0
    muon       of a matrix, the nearest orthogonal one to its momentum; AdamW for the rest         1

All of it is fp32 and depends on the arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from kssm_mlx.training.recipe_sections import Train

Slots = dict[str, mx.array]  # what is kept of one parameter, by name
Direct = Callable[[mx.array, Slots], tuple[mx.array, Slots]]  # (gradient, slots) -> (direction, slots)


class Rule(NamedTuple):
    """begin: parameter -> its slots before the first update. prepare: (numbers, updates made with this one,
    fp32 []) -> the rule of this update.
    """

    begin: Callable[[mx.array], Slots]
    prepare: Callable[[Train, mx.array], Direct]


def _begin_adamw(p: mx.array) -> Slots:
    return {"m": mx.zeros_like(p), "v": mx.zeros_like(p)}


def _prepare_adamw(train: Train, n: mx.array) -> Direct:
    """Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2."""
    beta1, beta2 = train.beta1, train.beta2
    to_mean, to_square = 1 / (1 - beta1**n), 1 / (1 - beta2**n)

    def direct(g: mx.array, slots: Slots) -> tuple[mx.array, Slots]:
        m = beta1 * slots["m"] + (1 - beta1) * g
        v = beta2 * slots["v"] + (1 - beta2) * mx.square(g)
        return to_mean * m / (mx.sqrt(to_square * v) + train.epsilon), {"m": m, "v": v}

    return direct


def _begin_lion(p: mx.array) -> Slots:
    return {"m": mx.zeros_like(p)}


def _prepare_lion(train: Train, n: mx.array) -> Direct:
    """Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1."""
    beta1, beta2 = train.beta1, train.beta2

    def direct(g: mx.array, slots: Slots) -> tuple[mx.array, Slots]:
        m = slots["m"]
        return mx.sign(beta1 * m + (1 - beta1) * g), {"m": beta2 * m + (1 - beta2) * g}

    return direct


DECAY, FLOOR, MOST = -0.8, 1e-30, 1.0  # Adafactor's: beta2 = 1 - n^DECAY; added to g²; the largest rms


def _begin_adafactor(p: mx.array) -> Slots:
    if p.ndim < 2:
        return {"v": mx.zeros_like(p)}
    return {
        "row": mx.zeros(p.shape[:-1], p.dtype),
        "column": mx.zeros((*p.shape[:-2], p.shape[-1]), p.dtype),
    }


def _prepare_adafactor(train: Train, n: mx.array) -> Direct:
    """With the learning rate as it is, not relative to the size of the parameter: a matrix that begins at
    zero, as the second of an adapter, would otherwise hardly move.

    Source: Shazeer and Stern 2018, "Adafactor", algorithms 4 and 5.
    """
    beta2 = 1 - n**DECAY

    def direct(g: mx.array, slots: Slots) -> tuple[mx.array, Slots]:
        square = mx.square(g) + FLOOR
        if "v" in slots:
            slots = {"v": beta2 * slots["v"] + (1 - beta2) * square}
            scaled = g * mx.rsqrt(slots["v"])
        else:
            row = beta2 * slots["row"] + (1 - beta2) * mx.mean(square, axis=-1)
            column = beta2 * slots["column"] + (1 - beta2) * mx.mean(square, axis=-2)
            slots = {"row": row, "column": column}
            share = row / mx.mean(row, axis=-1, keepdims=True)
            scaled = g * mx.rsqrt(share)[..., None] * mx.rsqrt(column)[..., None, :]
        size = mx.sqrt(mx.mean(mx.square(scaled)))
        return scaled / mx.maximum(1.0, size / MOST), slots

    return direct


# The polynomial a x + b x³ + c x⁵ of Muon takes singular values between 0 and 1 to about 1 in five steps.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
MATCH = 0.2  # the rms of AdamW's directions while it trains


def _prepare_muon(train: Train, n: mx.array) -> Direct:
    """Nesterov momentum, made orthogonal and given the size of AdamW's direction: an orthogonal [rows,
    columns] has an rms of 1 / sqrt(max(rows, columns)).

    Sources: Jordan et al. 2024, "Muon"; for the size, Liu et al. 2025, "Muon is Scalable for LLM Training",
    section 2.2.
    """
    mu = train.momentum

    def direct(g: mx.array, slots: Slots) -> tuple[mx.array, Slots]:
        m = mu * slots["m"] + (1 - mu) * g
        return MATCH * max(g.shape) ** 0.5 * orthogonalize(mu * m + (1 - mu) * g), {"m": m}

    return direct


def orthogonalize(matrix: mx.array) -> mx.array:
    """U Vᵀ of the decomposition U S Vᵀ, about: singular values between 0.68 and 1.13 for those of `matrix`
    above a thousandth of its norm. By Newton and Schulz's iteration, which is products alone.

    Shapes: [rows, columns] -> the same.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (mx.sqrt(mx.sum(mx.square(x))) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


ADAMW = Rule(_begin_adamw, _prepare_adamw)
LION = Rule(_begin_lion, _prepare_lion)
ADAFACTOR = Rule(_begin_adafactor, _prepare_adafactor)
MUON = Rule(_begin_lion, _prepare_muon)  # keeps the same


def choose_rule(train: Train, shape: tuple[int, ...], hidden: bool) -> Rule:
    """The rule of a parameter. hidden: whether it is neither embedding nor head, nor one that no decay
    touches: Muon is for matrices between hidden states.
    """
    if train.optimizer == "muon":
        return MUON if hidden and len(shape) == 2 and min(shape) > 1 else ADAMW
    return {"adamw": ADAMW, "lion": LION, "adafactor": ADAFACTOR}[train.optimizer]
