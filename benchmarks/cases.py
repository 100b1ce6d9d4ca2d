"""The cases: each a title, what the numbers mean, and the contenders, baseline first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from kssm_mlx import models
from kssm_mlx.ops.mobius_scan import flow, kick, mobius_scan, mobius_scan_reference
from kssm_mlx.oscillators.planar import Planar
from kssm_mlx.training.recipe import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step

BATCH, GROUPS, VOCABULARY = 16, 128, 256


class Case(NamedTuple):
    """tokens: how many tokens one call covers, for tokens per second."""

    title: str
    tokens: int
    contenders: dict[str, Callable[[], Any]]


def scans(lengths: tuple[int, ...]) -> Iterator[Case]:
    """The Kuramoto recurrence, forward and with gradients: token by token under autodiff against ours."""
    for T in lengths:
        inputs = _fields(BATCH, T, GROUPS)
        forms = {"serial": mobius_scan_reference, "mobius_scan": mobius_scan}
        yield Case(
            f"scan forward, B {BATCH} T {T} G {GROUPS}",
            BATCH * T,
            {name: _call(mx.compile(_states(form)), inputs) for name, form in forms.items()},
        )
        yield Case(
            f"scan forward + gradients, B {BATCH} T {T} G {GROUPS}",
            BATCH * T,
            {
                name: _call(mx.compile(mx.grad(_loss(form), (0, 1, 2, 3))), inputs)
                for name, form in forms.items()
            },
        )


def training(families: dict[str, dict[str, Any]], context: int) -> Case:
    """One training step of each architecture at the size "s"."""
    train = Train(batch_size=BATCH, context=context)
    tokens = mx.random.randint(0, VOCABULARY, (BATCH, context + 1), key=mx.random.key(0))
    return Case(
        f"training step, size s, B {BATCH} T {context}",
        BATCH * context,
        {name: _training_step(overrides, train, tokens) for name, overrides in families.items()},
    )


def decoding(families: dict[str, dict[str, Any]], steps: int = 32) -> Case:
    """Token after token with a carried state, batch 1."""
    return Case(
        f"decode {steps} tokens, size s, B 1",
        steps,
        {name: _decoder(overrides, steps) for name, overrides in families.items()},
    )


def _fields(B: int, T: int, G: int) -> tuple[mx.array, ...]:
    keys = mx.random.split(mx.random.key(1), 4)
    draw = [mx.random.normal((B, T, G), key=key) for key in keys]
    a, k = flow(mx.abs(draw[0]) * 0.1, draw[1]), kick(Planar(draw[2], draw[3]) * 0.2)
    inputs = (a.re, a.im, k.re, k.im)
    mx.eval(inputs)
    return inputs


def _states(form):
    def states(a_re, a_im, k_re, k_im):
        z = form(Planar(a_re, a_im), Planar(k_re, k_im))
        return z.re, z.im

    return states


def _loss(form):
    return lambda *inputs: sum((part * part).sum() for part in _states(form)(*inputs))


def _call(function, inputs):
    return lambda: function(*inputs)


def _build(overrides: dict[str, Any], context: int):
    family = overrides.get("family", "kssm")
    rest = {k: v for k, v in overrides.items() if k != "family"}
    return models.build(models.configure(family, "s", vocab_size=VOCABULARY, context=context, overrides=rest))


def _training_step(overrides: dict[str, Any], train: Train, tokens: mx.array):
    model = _build(overrides, train.context)
    step, state = make_step(model, train), [initial_state(model, train)]

    def run():
        state[0], metrics = step(state[0], tokens)
        return state[0], metrics

    return run


def _decoder(overrides: dict[str, Any], steps: int):
    model = _build(overrides, 128)
    prompt = mx.zeros((1, 8), mx.int32)

    @mx.compile
    def one(token, cache):
        out = model.forward(token, cache)
        return out.logits[:, -1:].argmax(-1), out.cache

    def run():
        out = model.forward(prompt)
        token, cache = out.logits[:, -1:].argmax(-1), out.cache
        for _ in range(steps):
            token, cache = one(token, cache)
            mx.async_eval(token, cache)
        return token

    return run
