"""A graft: phase cores inside a base model that somebody else trained, none of whose weights is touched.

    embedding   before the first block                     residual   after a block
    mixer       what a block's recurrence reads out, before its gate and output projection
    final       after the last norm                        logits     after the head

The grafted model is a language model like its base model, whose parameters are under `host.`, the cores'
under `graft.0`, `graft.1`, ... in the order of the blocks. A core that carries phases keeps them in the cache
entry of its block, behind the base model's arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import FAMILIES
from kssm_mlx.models.base import (
    Cache,
    Intervention,
    LanguageModel,
    Output,
    clamp_output,
    component_of,
    refuse_unknown_clamps,
)
from kssm_mlx.models.grafts.configs import Graft
from kssm_mlx.models.grafts.phase_cores import PhaseCore
from kssm_mlx.models.mlx_lm.model import MLXLM
from kssm_mlx.models.recurrent import RecurrentModel


def graft(base: LanguageModel, config: Graft, seed: int = 0) -> LanguageModel:
    """`base` with the cores of `config` in it; its own parameters are the same arrays as before.

    Raises: ConfigError for a base model that takes none, or has no such block.
    """
    known = [name for name, family in FAMILIES.items() if family.graft_width]
    if base.model_type not in known:
        raise ConfigError(f"{base.model_type} takes no graft; families that do: {', '.join(known)}")
    if isinstance(base, MLXLM) and config.site == "mixer":
        raise ConfigError(
            "a block of mlx-lm's is not entered, so no core can be at its mixer; set model.graft.site to "
            "residual, embedding, final or logits, as far as the core has it"
        )
    # Every family with a graft_width is one.
    below = cast(RecurrentModel, base)
    inside = GraftedWalk if isinstance(base, MLXLM) else Grafted
    grafted = (GraftedHead if config.site == "logits" else inside)(below, config, seed)
    mx.eval(grafted.parameters())
    return grafted


@dataclass
class Applied:
    """A core at work in one call: it is given the stream once, and keeps what that leaves behind.

    phases: [the core's] for one that carries them, else empty; trace: what it names.
    """

    core: PhaseCore
    block: int
    phases: list
    resets: mx.array | None
    lengths: mx.array | None
    key: mx.array | None
    intervention: Intervention | None
    trace: dict = field(default_factory=dict)

    def __call__(self, x: mx.array) -> mx.array:
        before = self.phases[0] if self.phases else None
        y, after, self.trace = self.core(x, before, self.resets, self.lengths, self.key)
        self.phases = [after] if self.core.carries else []
        return clamp_output(x, y, self.intervention, self.block, "graft")


class _OnBase:
    """What a grafted model says of itself: the base model's word, and the graft's where it has one."""

    def plant(self, base: RecurrentModel, config: Graft, seed: int) -> None:
        """Keep the base model, and make the cores."""
        self.host, self._site, self._blocks = base, config.site, config.blocks(len(base.layers))
        keys = mx.random.split(mx.random.key(seed), len(self._blocks))
        self.graft = [config.make(base, key) for key in keys]

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.host.layers

    @property
    def clamp_sites(self) -> tuple[str, ...]:
        """Those of the base model, and what a core adds to the stream: held at 0, the core is not there."""
        return (*self.host.clamp_sites, "graft")

    @property
    def act_sites(self) -> tuple[str, ...]:
        """Those of the base model; a core after the last norm has its own state, which S3 would not reach."""
        return tuple(site for site in self.host.act_sites if (site, self._site) != ("S3", "final"))

    def component(self, path: str) -> str:
        own = path.startswith("graft.")
        return "oscillator" if own else component_of(self.host, path.removeprefix("host."))

    @property
    def knobs(self) -> tuple[str, ...]:
        return tuple(f"graft.{n}.{name}" for n, core in enumerate(self.graft) for name in core.knobs)

    @property
    def buffers(self) -> tuple[str, ...]:
        """What a core of the legacy kind hands from call to call."""
        return tuple(f"graft.{n}.{name}" for n, core in enumerate(self.graft) for name in core.buffers)

    @property
    def oscillator_step(self):
        """That of the cores; AttributeError, which `hasattr` reads as none, where they have no phases."""
        return self.graft[0].oscillator_step

    @property
    def stochastic(self) -> bool:
        """Whether a core draws noise in training, where its knob sigma is above zero."""
        return any(name.endswith("sigma") for name in self.knobs)

    @property
    def no_decay(self) -> tuple[str, ...]:
        return (*self.host.no_decay, *PhaseCore.no_decay)

    @property
    def cast_predicate(self):
        """The cores stay fp32."""
        allows = self.host.cast_predicate
        return lambda path: not path.startswith("graft.") and allows(path.removeprefix("host."))

    @property
    def quant_predicate(self):
        allows = self.host.quant_predicate
        return lambda path, module: not path.startswith("graft.") and allows(path, module)

    def slots_of(self, i: int) -> tuple[str, ...]:
        carries = i in self._blocks and self.graft[0].carries
        return (*self.host.slots_of(i), *(("phases",) if carries else ()))

    def count_base_arrays(self, i: int) -> int:
        """How many arrays of block i's cache entry are the base model's."""
        return len(self.host.slots_of(i))

    def at_the_end(self, x: mx.array, new: Cache, trace: dict, *call) -> mx.array:
        """The only core after all blocks; the last block's entry and trace take what it leaves.

        x: logits or what the head reads; `call`: phases and the rest that `Applied` wants.
        """
        last = len(self.layers) - 1
        core = Applied(self.graft[0], last, *call)
        x = core(x)
        new[-1] = [*new[-1][: self.count_base_arrays(last)], *core.phases]
        trace |= {f"block{last:02d}/{name}": value for name, value in core.trace.items()}
        return x


class Grafted(_OnBase, RecurrentModel):
    """A base model with cores at its blocks, before them or after them."""

    def __init__(self, base: RecurrentModel, config: Graft, seed: int = 0):
        super().__init__(base.args)
        self.plant(base, config, seed)

    def embed(self, tokens: mx.array) -> mx.array:
        return self.host.embed(tokens)

    def finish(self, x: mx.array) -> mx.array:
        return self.host.finish(x)

    def project(self, hidden: mx.array) -> mx.array:
        return self.host.project(hidden)

    def state_view(self, entry: list) -> mx.array:
        return self.host.state_view(entry)

    def with_state(self, entry: list, view: mx.array) -> list:
        return self.host.with_state(entry, view)

    def perturb_state(self, view: mx.array, noise: mx.array) -> mx.array:
        return self.host.perturb_state(view, noise)

    def enter(self, tokens, cache, resets, lengths, key):
        """Beside what the base model carries from block to block goes the key of the noise."""
        x, carried = self.host.enter(tokens, cache, resets, lengths, key)
        return x, (carried, key)

    def hidden(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None, key=None):
        x, new, trace = super().hidden(tokens, cache, intervention, resets=resets, lengths=lengths, key=key)
        if self._site == "final":
            phases = new[-1][self.count_base_arrays(len(new) - 1) :]  # as the walk found them
            x = self.at_the_end(x, new, trace, phases, resets, lengths, key, intervention)
        return x, new, trace

    def runner(self, i: int, intervention: Intervention | None):
        """Block i of the base model, with its core where it has one."""
        inside = i in self._blocks and self._site != "final"
        tapped = inside and self._site == "mixer"
        # What a tap reads would be lost to the gradient of a checkpointed block.
        self.host.checkpoint_blocks = self.checkpoint_blocks and not tapped
        block = self.host.runner(i, intervention)

        def run(x, entry, carried, resets, lengths):
            (carried, key), n = carried, self.count_base_arrays(i)
            core = self.apply_core(i, entry[n:], resets, lengths, key, intervention) if inside else None
            if core and self._site == "embedding":
                x = core(x)
            tap = {"tap": core} if tapped else {}
            x, own, carried, trace = block(x, entry[:n], carried, resets, lengths, **tap)
            if core and self._site == "residual":
                x = core(x)
            left, named = (core.phases, core.trace) if core else (entry[n:], {})
            return x, [*own, *left], (carried, key), {**trace, **named}

        return run

    def apply_core(self, i: int, phases: list, resets, lengths, key, intervention) -> Applied:
        """The core of block i in this call, with a key of its own."""
        n = self._blocks.index(i)
        key = None if key is None else mx.random.split(key, len(self._blocks))[n]
        return Applied(self.graft[n], i, phases, resets, lengths, key, intervention)


class GraftedWalk(_OnBase, RecurrentModel):
    """A model of mlx-lm with cores at its blocks: mlx-lm's walk meets them on its way."""

    host: MLXLM

    def __init__(self, base: RecurrentModel, config: Graft, seed: int = 0):
        super().__init__(base.args)
        self.plant(base, config, seed)

    def project(self, hidden: mx.array) -> mx.array:
        return self.host.project(hidden)

    def hidden(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None, key=None):
        n, last = len(self.host.slots), len(self.layers) - 1
        phases = {i: [] if cache is None else cache[i][n:] for i in range(last + 1)}
        drawn = [None] * len(self._blocks) if key is None else mx.random.split(key, len(self._blocks))
        cores = {
            i: Applied(core, i, phases[i], resets, lengths, k, intervention)
            for i, core, k in zip(self._blocks, self.graft, drawn)
        }

        def wrap(i, run):
            core = cores.get(i) if self._site != "final" else None
            if core is None:
                return run
            return (lambda x: run(core(x))) if self._site == "embedding" else (lambda x: core(run(x)))

        refuse_unknown_clamps(intervention, self.clamp_sites, last + 1, self.act_sites)
        self.host.checkpoint_blocks = self.checkpoint_blocks
        below = None if cache is None else [entry[:n] for entry in cache]
        call = {"resets": resets, "lengths": lengths, "key": key, "wrap": wrap}
        x, new, trace = self.host.hidden(tokens, below, _select_base_acts(intervention), **call)
        if self._site == "final":
            x = cores[last](x)
        for i, core in cores.items():
            new[i] = [*new[i], *core.phases]
            trace |= {f"block{i:02d}/{name}": value for name, value in core.trace.items()}
        return x, new, trace


def _select_base_acts(intervention: Intervention | None) -> Intervention | None:
    """What of an intervention the base model does itself."""
    clamps = tuple(c for c in intervention.clamps if c.site != "graft") if intervention else ()
    return replace(intervention, clamps=clamps) if intervention else None


class GraftedHead(_OnBase, LanguageModel):
    """A base model with a core on its logits, which has to see all of them at once: there is no `hidden`."""

    def __init__(self, base: RecurrentModel, config: Graft, seed: int = 0):
        super().__init__()
        self.args, self.model_type = base.args, base.model_type
        self.plant(base, config, seed)

    def forward(
        self, tokens, cache=None, intervention=None, *, resets=None, lengths=None, key=None
    ) -> Output:
        """Shapes: tokens [B, T] int -> logits [B, T, V], new cache, trace."""
        refuse_unknown_clamps(intervention, self.clamp_sites, len(self.layers), self.act_sites)
        below = _select_base_acts(intervention)
        out = self.host.forward(tokens, cache, below, resets=resets, lengths=lengths, key=key)
        n = self.count_base_arrays(len(self.layers) - 1)
        phases = [cache[-1][n]] if cache is not None and self.graft[0].carries else []
        call = (phases, resets, lengths, key, intervention)
        return Output(self.at_the_end(out.logits, out.cache, out.trace, *call), out.cache, out.trace)

    def make_cache(self) -> Cache:
        return [[None] * len(self.slots_of(i)) for i in range(len(self.layers))]
