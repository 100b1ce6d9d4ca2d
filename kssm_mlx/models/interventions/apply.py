"""The walk under acts: around the final norm, and token by token where the carried state is acted on.

A state that is changed after every token cannot be scanned in parallel: the walk takes one token at a time,
as generation does, so the result is the same however a text is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Cache, Intervention
from kssm_mlx.models.interventions.spec import Act, Amplitude, Noise, carry_out


class RecurrentWalk(Protocol):
    """What is asked of a recurrent model here (`models.recurrent.RecurrentModel`, which stands above)."""

    @property
    def layers(self) -> Sequence: ...

    def hidden(
        self, tokens, cache=None, intervention=None, *, resets=None, lengths=None, key=None
    ) -> tuple[mx.array, Cache, dict[str, Any]]: ...

    def finish(self, x: mx.array) -> mx.array: ...

    def state_view(self, entry: list) -> mx.array: ...

    def with_state(self, entry: list, view: mx.array) -> list: ...

    def perturb_state(self, view: mx.array, noise: mx.array) -> mx.array: ...


def prepare_intervention(
    intervention: Intervention, cache: Cache | None, key: mx.array | None
) -> tuple[Intervention, mx.array | None]:
    """The intervention with a key for its noise, if the step has one, and the key that is left for the model.

    Raises: ConfigError for statistics of the batch where there is a cache: of one token they mean nothing.
    """
    legacy = [act for act in intervention.acts if isinstance(act, Amplitude) and act.scope == "batch"]
    if legacy and cache is not None:
        raise ConfigError(
            f"{legacy[0].describe()}: statistics of a batch see the future and cannot be continued from a "
            'cache; use scope "token", or "frozen" with measured statistics'
        )
    if key is None or not intervention.stochastic:
        return intervention, key
    own, key = mx.random.split(key)
    return replace(intervention, key=own), key


def apply_before_head(
    model: RecurrentWalk, x: mx.array, intervention: Intervention, trace: dict[str, Any]
) -> mx.array:
    """What the head reads, by way of S0, the final norm, S1 and S4. Shapes: x [B, T, D] -> [B, T, D]."""
    trace["S0"] = carry_out(x, intervention.at("S0"))
    trace["S1"] = carry_out(model.finish(trace["S0"]), intervention.at("S1"))
    return carry_out(trace["S1"], intervention.at("S4"), intervention.key, len(model.layers))


def run_token_by_token(
    model: RecurrentWalk, tokens, cache, intervention: Intervention, resets, lengths, key
) -> tuple[mx.array, Cache, dict[str, Any]]:
    """`model.hidden` with the acts on S3 carried out on the state that every token leaves."""
    on_states = intervention.at("S3")
    between = replace(intervention, acts=tuple(act for act in intervention.acts if act.site != "S3"))
    hidden, traces, T = [], [], tokens.shape[1]
    keys = [None] * T if key is None else mx.random.split(key, T)
    noise = [None] * T if intervention.key is None else mx.random.split(intervention.key, T)
    for t in range(T):
        here = slice(t, t + 1)
        x, new, trace = model.hidden(
            tokens[:, here],
            cache,
            replace(between, key=noise[t]),
            resets=None if resets is None else resets[:, here],
            lengths=None if lengths is None else lengths - t,
            key=keys[t],
        )
        valid = None if lengths is None else (lengths > t)[:, None]
        cache = [_act_on_state(model, entry, i, on_states, noise[t], t, valid) for i, entry in enumerate(new)]
        hidden.append(x)
        traces.append(trace)
    return (
        mx.concatenate(hidden, axis=1),
        cache,
        {**join_traces(traces), "intervention": intervention.describe()},
    )


def _act_on_state(model, entry: list, block: int, acts: tuple[Act, ...], key, t: int, valid) -> list:
    """A cache entry after the acts on its state; padding leaves it as it is."""
    before = view = model.state_view(entry)
    for act in acts:
        if act.block not in (None, block):
            continue
        if isinstance(act, Noise):
            zero = mx.zeros_like(view)[:, None]
            key = mx.random.split(mx.random.key(act.seed), t + 1)[t] if key is None else key
            view = model.perturb_state(view, carry_out(zero, (act,), key, block)[:, 0])
        else:
            view = carry_out(view[:, None], (act,))[:, 0]
    return model.with_state(entry, view if valid is None else mx.where(valid, view, before))


def join_traces(traces: list[dict[str, Any]]) -> dict[str, Any]:
    """The traces of single tokens as that of the text; what has no axis of time is that of the last token."""
    joined = dict(traces[-1])
    for name, value in joined.items():
        if isinstance(value, mx.array) and value.ndim > 2 and value.shape[1] == 1:
            joined[name] = mx.concatenate([trace[name] for trace in traces], axis=1)
    return joined
