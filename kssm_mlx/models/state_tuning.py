"""State tuning: the state that a text begins with is learned, every weight of the model stays as it is.

A recurrence has read nothing before the first token, and its state is then zero, or what the family begins
with. Here it is trained: of every block the array that carries the past, and not the last inputs of short
convolutions and token shifts. It begins as the family's own, so that nothing changes before the first update.

    populations   order parameters of phases, kept below 1 by z = v / sqrt(1 + |v|²) where kappa > 0
    num           RWKV-4's numerator, over a denominator of a millionth
    all others    the state as it is; on spheres too, as the family's own `start`

A document that begins inside a row begins with it too. No operation takes such a start, so rows with `resets`
are read token by token; data whose rows are cut at documents have none.

Source: BlinkDL's RWKV-PEFT, "state tuning".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Cache, Intervention, LanguageModel, component_of, training_mode
from kssm_mlx.models.interventions.apply import join_traces
from kssm_mlx.models.recurrent import RecurrentModel
from kssm_mlx.models.spheres import within_ball

LEARNED = ("state", "mamba", "rwkv", "num", "populations", "balls")
# Of RWKV-4: beside a learned numerator, sums that weigh as good as nothing.
BESIDE = {"den": 2.0**-20, "max": 0.0}


class StateTuned(RecurrentModel):
    """`host`, frozen, that begins every text with `initial`, by block and slot, without the batch axis.

    Raises: ConfigError for a model that carries nothing of this kind.
    """

    def __init__(self, host: LanguageModel):
        if not isinstance(host, RecurrentModel) or not _learned_slots(host):
            raise ConfigError(
                f'{host.model_type} carries no state that could be learned: model.train = "state" is for '
                'recurrent families without attention; take "lora"'
            )
        super().__init__(host.args)
        host.freeze()
        self.host = host
        own = _own_beginning(host)
        self.initial = [
            {slot: self._from_state(slot, own[i][slot]) for slot in slots}
            for i, slots in enumerate(_learned_slots(host))
        ]

    def hidden(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None, key=None):
        self.host.checkpoint_blocks = self.checkpoint_blocks
        self.host.checkpoint_means = self.checkpoint_means
        cache = self._begin_cache(cache, tokens.shape[0])
        if resets is None:
            return self.host.hidden(tokens, cache, intervention, lengths=lengths, key=key)
        return self._by_token(tokens, cache, intervention, resets, lengths, key)

    def _by_token(self, tokens, cache: Cache, intervention, resets, lengths, key):
        hidden, traces, T, starts = [], [], tokens.shape[1], self.find_beginning()
        keys = [None] * T if key is None else mx.random.split(key, T)
        for t in range(T):
            left = None if lengths is None else lengths - t
            here = resets[:, t] if left is None else resets[:, t] & (left > 0)
            x, cache, trace = self.host.hidden(
                tokens[:, t : t + 1],
                self._restart_rows(cache, here, starts),
                intervention,
                lengths=left,
                key=keys[t],
            )
            hidden.append(x)
            traces.append(trace)
        return mx.concatenate(hidden, axis=1), cache, join_traces(traces)

    def _begin_cache(self, cache: Cache | None, B: int) -> Cache:
        """The cache, with what was learned in every entry that has read nothing."""
        found = self.make_cache() if cache is None else cache
        entries = [[found[i][j] for j in range(len(self.slots_of(i)))] for i in range(len(self.layers))]
        if not any(_has_read_nothing(entry) for entry in entries):
            return entries
        return [
            self._begin_entry(i, entry, start, B) if _has_read_nothing(entry) else entry
            for i, (entry, start) in enumerate(zip(entries, self.find_beginning(), strict=True))
        ]

    def _begin_entry(self, i: int, entry: list, start: dict[str, mx.array], B: int) -> list:
        return [
            mx.broadcast_to(start[slot][None], (B, *start[slot].shape)) if slot in start else array
            for slot, array in zip(self.slots_of(i), entry, strict=True)
        ]

    def _restart_rows(self, cache: Cache, here: mx.array, starts: list[dict[str, mx.array]]) -> Cache:
        """The cache with what a text begins with in the rows `here` [B]."""
        return [
            [
                None if a is None else mx.where(here.reshape(-1, *[1] * (a.ndim - 1)), start.get(slot, 0), a)
                for slot, a in zip(self.slots_of(i), entry, strict=True)
            ]
            for i, (entry, start) in enumerate(zip(cache, starts, strict=True))
        ]

    def find_beginning(self) -> list[dict[str, mx.array]]:
        """What every block begins a text with, by slot, without the batch axis."""
        return [self._initial_entry(i) for i in range(len(self.layers))]

    def _initial_entry(self, i: int) -> dict[str, mx.array]:
        """What block i begins with, by slot, without the batch axis."""
        start = {slot: self._to_state(slot, v) for slot, v in self.initial[i].items()}
        if "num" in start:
            start |= {slot: mx.full(start["num"].shape, value) for slot, value in BESIDE.items()}
        return start

    def _bounds(self, slot: str) -> bool:
        return slot == "populations" and getattr(self.args, "kappa", 0) > 0

    def _to_state(self, slot: str, v: mx.array) -> mx.array:
        if slot == "balls":
            return within_ball(v, getattr(self.args, "kappa", 0))
        return v * mx.rsqrt(1 + mx.square(v).sum(axis=0)) if self._bounds(slot) else v

    def _from_state(self, slot: str, z: mx.array) -> mx.array:
        if not self._bounds(slot):
            return z.astype(mx.float32)
        return z * mx.rsqrt(mx.maximum(1 - mx.square(z).sum(axis=0), 1e-6))

    # The rest is the word of the model below.

    def enter(self, tokens, cache, resets, lengths, key):
        return self.host.enter(tokens, cache, resets, lengths, key)

    def embed(self, tokens: mx.array) -> mx.array:
        return self.host.embed(tokens)

    def finish(self, x: mx.array) -> mx.array:
        return self.host.finish(x)

    def project(self, hidden: mx.array) -> mx.array:
        return self.host.project(hidden)

    def runner(self, i: int, intervention: Intervention | None):
        return self.host.runner(i, intervention)

    def state_view(self, entry: list) -> mx.array:
        return self.host.state_view(entry)

    def with_state(self, entry: list, view: mx.array) -> list:
        return self.host.with_state(entry, view)

    def perturb_state(self, view: mx.array, noise: mx.array) -> mx.array:
        return self.host.perturb_state(view, noise)

    def slots_of(self, i: int) -> tuple[str, ...]:
        return self.host.slots_of(i)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.host.layers

    @property
    def clamp_sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.host.clamp_sites

    @property
    def act_sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.host.act_sites

    @property
    def no_decay(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.host.no_decay, *LEARNED)

    @property
    def cast_predicate(self):
        """What is learned stays fp32."""
        allows = self.host.cast_predicate
        return lambda path: not path.startswith("initial.") and allows(path.removeprefix("host."))

    @property
    def quant_predicate(self):
        return self.host.quant_predicate

    def component(self, path: str) -> str:
        return "state" if path.startswith("initial.") else component_of(self.host, path.removeprefix("host."))


def _has_read_nothing(entry: list) -> bool:
    return all(array is None for array in entry)


def _learned_slots(host: RecurrentModel) -> list[tuple[str, ...]]:
    """Of each block the slots that are learned; [] where no block has any, or one has attention."""
    slots = [host.slots_of(i) for i in range(len(host.layers))]
    learned = [tuple(slot for slot in own if slot in LEARNED) for own in slots]
    return learned if any(learned) and not any("keys" in own for own in slots) else []


def _own_beginning(host: RecurrentModel) -> list[dict[str, mx.array]]:
    """What every block of a model begins with, by slot: the cache after no valid token."""
    with training_mode(host, training=False):
        cache = host.hidden(mx.zeros((1, 1), mx.int32), None, lengths=mx.array([0]))[1]
    return [
        {slot: cast(mx.array, a)[0] for slot, a in zip(host.slots_of(i), entry, strict=True) if a is not None}
        for i, entry in enumerate(cache)
    ]
