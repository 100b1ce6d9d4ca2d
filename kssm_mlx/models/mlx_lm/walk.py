"""Hands on a model of mlx-lm: what its blocks are given and give, what its head reads, its code unchanged.

Every such model is a stack of blocks inside a module that ends in a norm, inside one that adds the head. The
walk through them is mlx-lm's own, with all that a family does on the way (scaled embeddings, masks of sliding
windows, capped logits). A block and the stack are given a class of their own, which asks a function before it
computes: `around(run, x, ...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError, one_line
from kssm_mlx.models.mlx_lm.rows import Call, Rows

Around = Callable[..., mx.array]  # around(i, run, x) -> y, of block i


class Walk:
    """blocks: those of `model`, in order. width: of the stream between them.

    Raises: ConfigError for a model that has no stack to reach into, or keeps another state than keys and
        values.
    """

    def __init__(self, model: nn.Module, name: str):
        self.model, self.name = model, name
        self._stack, self._key = self._find_stack()
        for module in (self._stack, *self.blocks):
            module.__class__ = _tap_class(type(module))
        self._refuse_other_state()
        self.width = self._try()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self._stack[self._key]

    def hidden(self, tokens: mx.array, rows: list[Rows], around: Around) -> mx.array:
        """What the head reads, each block computed by `around`. Shapes: tokens [B, T] -> [B, T, D]."""
        with self._ask_blocks(around) as heard:
            self.model(tokens, cache=rows)  # its logits are never computed
        return heard[-1]

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        with _around(self._stack, lambda run, *args, **kwargs: hidden):
            return self.model(mx.zeros((1, 1), mx.int32))

    @contextmanager
    def _ask_blocks(self, around: Around) -> Iterator[list[mx.array]]:
        """Every block asks `around`; what the stack gives is noted in the list."""
        heard: list[mx.array] = []

        def note(run, *args, **kwargs):
            heard.append(run(*args, **kwargs))
            return heard[-1]

        def ask(i, run, x, *args, **kwargs):
            return around(i, lambda x: run(x, *args, **kwargs), x)

        _set(self._stack, note)
        for i, block in enumerate(self.blocks):
            _set(block, partial(ask, i))
        try:
            yield heard
        finally:
            for module in (self._stack, *self.blocks):
                _set(module, None)

    def _find_stack(self) -> tuple[nn.Module, str]:
        """The module that holds the blocks, and under which name."""
        blocks = getattr(self.model, "layers", None)
        for _, module in self.model.named_modules():
            for key, value in module.items():
                if (
                    blocks
                    and module is not self.model
                    and isinstance(value, list)
                    and value[:1] == blocks[:1]
                ):
                    return module, key
        raise ConfigError(
            f"mlx-lm's {self.name} has no stack of blocks inside it, which a head reads; take another base"
        )

    def _refuse_other_state(self) -> None:
        from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

        kinds = {type(entry) for entry in make_prompt_cache(self.model)}
        if other := sorted(kind.__name__ for kind in kinds - {KVCache, RotatingKVCache}):
            raise ConfigError(
                f"mlx-lm's {self.name} carries {', '.join(other)} from token to token; of its models those "
                "with keys and values alone are taken"
            )

    def _try(self) -> int:
        """The width of the stream, read off passes that are never evaluated: of two tokens, and one more."""
        seen: list[tuple[int, Any]] = []

        def look(i, run, x):
            y = run(x)
            seen.append((i, getattr(y, "shape", None) if isinstance(x, mx.array) else None))
            return y

        n = len(self.blocks)
        with said_in_one_line(f"mlx-lm's {self.name} does not walk as its other models do"):
            first = [Rows(Call(None, 1, 2, None, None), [None] * 3) for _ in range(n)]
            hidden = self.hidden(mx.zeros((1, 2), mx.int32), first, look)
            entries = [rows.entry() for rows in first]
            call = Call(entries, 1, 1, None, None)
            self.hidden(mx.zeros((1, 1), mx.int32), [Rows(call, e) for e in entries], look)
            self.project(hidden)
        D = hidden.shape[-1]
        if seen != [(i, (1, T, D)) for T in (2, 1) for i in range(n)]:
            raise ConfigError(
                f"mlx-lm's {self.name} has blocks that are not called one after the other on one stream; "
                "take another base"
            )
        return D


@contextmanager
def said_in_one_line(what: str) -> Iterator[None]:
    """Whatever code of mlx-lm raises, as a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as e:
        raise ConfigError(f"{what}: {one_line(f'{type(e).__name__}: {e}')}") from None


@cache
def _tap_class(kind: type[nn.Module]) -> type[nn.Module]:
    """A module class whose calls go through what was set with `_set`."""

    def call(self, *args, **kwargs) -> Any:
        around, run = getattr(self, "_around", None), partial(kind.__call__, self)
        return run(*args, **kwargs) if around is None else around(run, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call})


def _set(module: nn.Module, around: Callable | None) -> None:
    object.__setattr__(module, "_around", around)


@contextmanager
def _around(module: nn.Module, around: Callable) -> Iterator[None]:
    _set(module, around)
    try:
        yield
    finally:
        _set(module, None)
