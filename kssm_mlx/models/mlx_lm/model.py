"""A model of mlx-lm as one of ours: its own code and names of parameters, our caches, checks and grafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.utils import checkpoint

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import (
    Cache,
    Intervention,
    clamp_output,
    flatten,
    refuse_unknown_clamps,
    training_mode,
)
from kssm_mlx.models.families.family import KeyMap
from kssm_mlx.models.mlx_lm.apart import mixes_documents, mixes_rows
from kssm_mlx.models.mlx_lm.config import MLXLMConfig, make, preset
from kssm_mlx.models.mlx_lm.rows import Call, Rows
from kssm_mlx.models.mlx_lm.walk import Walk
from kssm_mlx.models.recurrent import RecurrentModel

__all__ = ["MLXLM", "MLXLMConfig", "preset"]

Run = Callable[[mx.array], mx.array]  # a block, of the stream alone
BUFFERS = ("rotary_emb.inv_freq",)  # stored by old versions of transformers, and computed by everybody


class MLXLM(RecurrentModel):
    """The language model; see `models.base.LanguageModel` for the interface.

    Cache: keys, values [B, H, S, d] and position [B, S] int32, UNSEEN where nobody may look (rows.py).
    """

    slots = ("keys", "values", "position")
    act_sites = ()

    def __init__(self, config: MLXLMConfig, seed: int = 0):
        super().__init__(config)
        own = make(config, seed)
        self._walk = Walk(own, config.architecture)
        self._mixes: tuple[str, ...] = ()
        # The parts of mlx-lm's model under their own names, which its files have and its tools know.
        self._parts = tuple(k for k, v in own.items() if isinstance(v, dict | list | mx.array))
        for name in self._parts:
            self[name] = own[name]

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self._walk.blocks

    def hidden(
        self,
        tokens,
        cache=None,
        intervention: Intervention | None = None,
        *,
        resets=None,
        lengths=None,
        key=None,
        wrap: Callable[[int, Run], Run] = lambda i, run: run,
    ) -> tuple[mx.array, Cache, dict[str, Any]]:
        """What the head reads, [B, T, D], with the new cache and the trace. wrap: (i, block i) -> what is
        computed in its place.
        """
        refuse_unknown_clamps(intervention, self.clamp_sites, len(self.layers), self.act_sites)
        self._refuse_mixed(resets=resets, lengths=lengths)
        if lengths is not None:
            lengths = mx.clip(lengths, 0, tokens.shape[1])
        blank = [[None] * len(self.slots)] * len(self.layers)
        started = None if cache is None or cache[0][0] is None else cache
        call = Call(started, tokens.shape[0], tokens.shape[1], resets, lengths)
        rows = [Rows(call, entry) for entry in started or blank]

        def wrap_block(i: int, run: Run, x: mx.array) -> mx.array:
            y = wrap(i, self._recompute_block(i, run, rows[i]))(x)
            return clamp_output(x, y, intervention, i)

        self._put_parts_back()
        x = self._walk.hidden(tokens, rows, wrap_block)
        trace: dict[str, Any] = {"intervention": intervention.describe()} if intervention else {}
        return x, [each.entry() for each in rows], trace

    def project(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states. Shapes: [..., D] -> [..., V]."""
        self._put_parts_back()
        return self._walk.project(hidden)

    def component(self, path: str) -> str:
        """By mlx-lm's usual names."""
        modules = dict(self.named_modules())
        names = path.split(".")
        if isinstance(modules.get(path.rpartition(".")[0]), nn.Embedding | nn.QuantizedEmbedding):
            return "embedding"
        if any("norm" in name or name.startswith("ln") for name in names):
            return "norm"
        if any("head" in name for name in names[:2]):
            return "head"
        feed_forward = any(name in ("mlp", "ffn", "feed_forward", "block_sparse_moe") for name in names)
        return "mlp" if feed_forward else "attention"

    @property
    def no_decay(self) -> tuple[str, ...]:
        return tuple(name for name, array in flatten(self.parameters()).items() if array.ndim < 2)

    @property
    def cast_predicate(self):
        return getattr(self._walk.model, "cast_predicate", lambda path: True)

    @property
    def quant_predicate(self):
        return getattr(self._walk.model, "quant_predicate", lambda path, module: True)

    def settle(self) -> None:
        """Once the parameters are there: see whether rows and documents stay apart in this architecture.

        mlx-lm's attention takes a mask and an offset per row; some of its models use neither as it does.
        """
        self._mixes = ()
        with training_mode(self, False):
            mixed = {"lengths": mixes_rows(self), "resets": mixes_documents(self)}
        self._mixes = tuple(kind for kind, found in mixed.items() if found)

    def _refuse_mixed(self, **given: mx.array | None) -> None:
        """Raises: ConfigError for what would silently be read as something else."""
        what = {
            "lengths": "prompts of unequal lengths in one batch; give it one at a time",
            "resets": "several documents in one row: its positions or masks do not begin anew; give it "
            "rows of one document, or another base model",
        }
        for kind in self._mixes:
            if given[kind] is not None:
                raise ConfigError(f"mlx-lm's {self.args.architecture} cannot read {what[kind]}")

    def key_map(self, stored: dict[str, mx.array]) -> tuple[KeyMap, list[str]]:
        """Name in the files -> name here, as mlx-lm itself renames, and what it makes of several tensors or
        in another form, which no file has. `stored` need not be evaluated.
        """
        sanitize = getattr(self._walk.model, "sanitize", dict)
        given = {id(array): name for name, array in stored.items()}
        taken = sanitize(dict(stored))
        made = [ours for ours, array in taken.items() if id(array) not in given]
        return {given[id(a)]: (ours, "same") for ours, a in taken.items() if id(a) in given}, made

    def _recompute_block(self, i: int, run: Run, rows: Rows) -> Run:
        """Block i, computed again for its gradient where blocks are; its keys and values come out by hand."""
        if not self.checkpoint_blocks:
            return run

        def with_keys(x):
            return run(x), *rows.grown

        def call(x):
            y, keys, values = checkpoint(self.layers[i], with_keys)(x)
            rows.grown = keys, values
            return y

        return call

    def _put_parts_back(self) -> None:
        """What was replaced here, such as a head by one in few bits, is what mlx-lm's code finds."""
        for name in self._parts:
            self._walk.model[name] = self[name]
