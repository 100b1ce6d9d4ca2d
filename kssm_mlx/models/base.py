"""What every model here is: a pure function of (parameters, tokens, cache) with named intermediates.

A cache is a list with one entry per block; an entry is anything that is indexed by slot (a plain list here,
an `ArraysCache` inside mlx-lm), holding arrays whose first axis is the batch, or None before the first token.
`forward` never changes the cache it is given; `model(tokens, cache)` writes the new arrays back into it,
which is the calling convention of mlx-lm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.interventions.spec import Act, Inside, Noise

Cache = list
Net = TypeVar("Net", bound=nn.Module)


class Output(NamedTuple):
    """What `forward` returns.

    Shapes:
        logits [B, T, V]; cache, one entry per block; trace, `"block03/R" -> array`, named once by the model
        and read by monitors, checks, interventions and plots.
    """

    logits: mx.array
    cache: Cache
    trace: dict[str, Any]


@dataclass(frozen=True)
class Clamp:
    """Hold one named quantity of one block at a value, on the tokens `start <= t < stop` of the call.

    site: what is held; the model lists its sites in `clamp_sites` (K-SSM: "R", "psi", "output").
    block: which block; None for all of them.
    value: the value held, a scalar or an array that broadcasts to [B, T, units].
    units: which groups are held; None for all.
    where: "readout" changes what the block reads out; "state" changes the carried state as well.
    """

    site: str
    value: float | mx.array
    block: int | None = None
    units: tuple[int, ...] | None = None
    start: int = 0
    stop: int | None = None
    where: str = "readout"

    def __post_init__(self):
        if self.units == ():
            raise ConfigError(f"a clamp on {self.site!r} of no units; name some, or None for all")
        value = mx.array(self.value)
        # An array is what was measured, and a linear bank (kappa = 0) has no upper bound.
        high = 1.0 if self.site == "R" and value.ndim == 0 else math.inf
        low = 0.0 if self.site == "R" else -math.inf
        if not mx.all((value >= low) & (value <= high)).item():
            expected = f"{low:g} to {high:g}" if self.site == "R" else "a number"
            raise ConfigError(f"a clamp on {self.site!r} to {_show(self.value)}; expected {expected}")


@dataclass(frozen=True)
class Intervention:
    """What an experiment changes inside a forward pass: an argument, exact, and written into the trace.

    clamps hold values, acts (acts.py) sizes and units; key: what noise among them is drawn from, which the
    walk takes from the step's.
    """

    clamps: tuple[Clamp, ...] = ()
    acts: tuple[Act, ...] = ()
    key: mx.array | None = None

    def of(self, site: str, block: int) -> tuple[Clamp, ...]:
        """The clamps on `site` of `block`, in the order given."""
        return tuple(c for c in self.clamps if c.site == site and c.block in (None, block))

    @property
    def stochastic(self) -> bool:
        """Whether it draws random numbers, and so wants a key in training."""
        return any(isinstance(act, Noise) for act in self.acts)

    def at(self, *sites: str) -> tuple[Act, ...]:
        """The acts on these sites, in the order given."""
        return tuple(act for act in self.acts if act.site in sites)

    def inside(self, block: int) -> Inside | None:
        """What the mixer of a block carries out; None where there is nothing."""
        acts = tuple(act for act in self.acts if act.block in (None, block))
        return Inside(acts, self.key, block) if acts else None

    def describe(self) -> list[str]:
        """One line per clamp and act, for the trace and the run folder."""
        acts = [act.describe() for act in self.acts]
        return acts + [
            f"{c.site}={_show(c.value)} block={'all' if c.block is None else c.block} "
            f"units={'all' if c.units is None else list(c.units)} tokens={c.start}:{c.stop or ''} {c.where}"
            for c in self.clamps
        ]


def _show(value: float | mx.array) -> str:
    return f"array{list(value.shape)}" if isinstance(value, mx.array) else f"{value:g}"


def refuse_missing_method(model: nn.Module, method: str) -> NoReturn:
    """Raises: NotImplementedError that tells the author of a family what is left to write."""
    name = type(model).__name__
    raise NotImplementedError(
        f"{name} has no {method}, and no family can do without it; define {name}.{method} as "
        'kssm_mlx/models/mamba.py does (CONTRIBUTING.md, "A model family")'
    )


class LanguageModel(nn.Module):
    """The interface of mlx-lm's models, plus `forward` and the names of what can be clamped.

    `resets` [B, T] bool: True where a document begins; the state before that token is the initial one.
    `lengths` [B] int: rows are right-padded; positions t >= lengths[b] leave the row's cache untouched.
    A family overrides every method that calls `refuse_missing_method` here.
    """

    args: Any
    model_type: str
    clamp_sites: tuple[str, ...] = ()
    act_sites: tuple[str, ...] = ()
    # Only of a model whose head can be applied to a part of the positions; `hasattr` asks.
    hidden: Callable[..., tuple[mx.array, Cache, dict[str, Any]]]
    project: Callable[[mx.array], mx.array]

    def __call__(self, tokens: mx.array, cache: Cache | None = None) -> mx.array:
        return continue_in_place(self, tokens, cache)

    def forward(
        self,
        tokens: mx.array,
        cache: Cache | None = None,
        intervention: Intervention | None = None,
        *,
        resets: mx.array | None = None,
        lengths: mx.array | None = None,
        key: mx.array | None = None,
    ) -> Output:
        """Shapes: tokens [B, T] int -> logits [B, T, V], new cache, trace `"block00/state"`, ..."""
        refuse_missing_method(self, "forward")

    def make_cache(self) -> Cache:
        refuse_missing_method(self, "make_cache")

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The blocks."""
        refuse_missing_method(self, "layers")

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return weights

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        refuse_missing_method(self, "cast_predicate")

    @property
    def quant_predicate(self) -> Callable[[str, nn.Module], bool]:
        refuse_missing_method(self, "quant_predicate")


MOST_BLOCKS, MOST_COUNT = 4096, 2**24


def refuse_counts_below_one(config, *may_be_zero: str, section: str = "model") -> None:
    """Raises: ConfigError for a whole number of a configuration that is too small to build anything, or so
    large that building it would not end.
    """
    for f in fields(config):
        value, least = getattr(config, f.name), 0 if f.name in may_be_zero else 1
        if f.type in ("int", "int | None") and value is not None and value < least:
            raise ConfigError(f"{section}.{f.name} must be at least {least}, got {value}")
        most = MOST_BLOCKS if "layers" in f.name or "blocks" in f.name else MOST_COUNT
        if f.type in ("int", "int | None") and value is not None and value > most:
            raise ConfigError(f"{section}.{f.name} must be at most {most:,}, got {value:,}")


def refuse_unknown_clamps(
    intervention: Intervention | None, sites: tuple[str, ...], n_blocks: int, act_sites: tuple[str, ...] = ()
) -> None:
    """Raise ConfigError for a clamp or an act that the model would silently ignore."""
    for act in intervention.acts if intervention else ():
        if act.site not in ("", *act_sites):
            raise ConfigError(f"{act.describe()}: this model has the sites {', '.join(act_sites) or 'none'}")
        if act.block is not None and not 0 <= act.block < n_blocks:
            raise ConfigError(f"{act.describe()}, but the model has blocks 0 to {n_blocks - 1}")
    for clamp in intervention.clamps if intervention else ():
        if clamp.site not in sites:
            raise ConfigError(f"no clamp site {clamp.site!r}; this model has {', '.join(sites)}")
        if clamp.block is not None and not 0 <= clamp.block < n_blocks:
            raise ConfigError(f"clamp on block {clamp.block}, but the model has blocks 0 to {n_blocks - 1}")
        if clamp.where not in ("readout", "state"):
            raise ConfigError(f"a clamp acts on 'readout' or 'state', got where={clamp.where!r}")


def mask_clamped(clamp: Clamp, first: int, T: int, units: int) -> mx.array:
    """[T, units] bool: the tokens and units a clamp holds; `first` is the call's index of the first token."""
    t = mx.arange(first, first + T)
    tokens = (t >= clamp.start) & (t < (first + T if clamp.stop is None else clamp.stop))
    if clamp.units and not 0 <= min(clamp.units) <= max(clamp.units) < units:
        raise ConfigError(f"clamp on units {list(clamp.units)}, but {clamp.site} has units 0 to {units - 1}")
    if clamp.units is None:
        return mx.broadcast_to(tokens[:, None], (T, units))
    chosen = (mx.arange(units)[:, None] == mx.array(clamp.units)[None]).any(axis=1)
    return tokens[:, None] & chosen[None]


def hold(y: mx.array, clamps: Iterable[Clamp]) -> mx.array:
    """y with each clamp's units at its value. Shapes: y [B, T, units, ...].

    Raises: ConfigError for a clamp on the state: a state that is no part of y is set in the cache.
    """
    for clamp in clamps:
        if clamp.where != "readout":
            raise ConfigError(f"{clamp.site!r} can be held where='readout' only; set a state in the cache")
        chosen = mask_clamped(clamp, 0, *y.shape[1:3]).reshape(*y.shape[1:3], *[1] * (y.ndim - 3))
        y = mx.where(chosen, mx.broadcast_to(mx.array(clamp.value, y.dtype), y.shape), y)
    return y


def clamp_output(
    x: mx.array, y: mx.array, intervention: Intervention | None, block: int, site: str = "output"
) -> mx.array:
    """Hold what a block adds to the residual stream, y - x; the value 0 takes the block out.

    Shapes: x, y [B, T, D], the stream before and after the block.
    """
    for clamp in intervention.of(site, block) if intervention else ():
        value = mx.broadcast_to(mx.array(clamp.value, y.dtype), y.shape)
        y = mx.where(mask_clamped(clamp, 0, x.shape[1], x.shape[2]), x + value, y)
    return y


def flatten(tree: Any) -> dict[str, mx.array]:
    """A nested tree, such as `model.parameters()`, as `{dotted.name: array}`."""
    return cast(dict[str, mx.array], tree_flatten(tree, destination={}))


def sizes_of(model: nn.Module) -> dict[str, int]:
    """How many weights each parameter stands for: one that holds them in few bits for all that it holds, the
    scales of these for none.
    """
    sizes = {name: array.size for name, array in flatten(model.parameters()).items()}
    for path, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            sizes[f"{path}.weight"] *= 32 // module.bits
            sizes |= {name: 0 for name in (f"{path}.scales", f"{path}.biases") if name in sizes}
    return sizes


def number(array: mx.array) -> float:
    """The value of an array [] of real numbers."""
    return cast(float, array.item())


def compute_parameters(model: nn.Module) -> None:
    """Compute the parameters of a fresh model, laid out row after row as a checkpoint holds them.

    A transposed one has the same numbers, but a matrix product adds them in another order: the logits of the
    saved model would be others in the last bits. One that is broadcast is slower to read.
    """
    model.update(tree_map(mx.contiguous, model.parameters()))
    mx.eval(model.parameters())


def with_parameters(model: nn.Module, parameters: dict[str, Any], call):
    """`call()` with the model's parameters replaced by `parameters`, which may be traced, and then restored.

    This is how a stateful `nn.Module` serves a pure function of its parameters: nothing traced stays behind.
    """
    own = model.parameters()
    model.update(parameters)
    try:
        return call()
    finally:
        model.update(own)


@contextmanager
def training_mode(model: Net, training: bool) -> Iterator[Net]:
    """The model in training or evaluation mode, put back as it was."""
    before = model.training
    model.train(training)
    try:
        yield model
    finally:
        model.train(before)


# Component tag <- a part of a parameter's name; the first that fits. What is left is a mixer.
_COMPONENTS = (
    ("embedding", ("embedding", "embeddings", "embed", "position", "positions")),
    ("head", ("head", "lm_head")),
    ("mlp", ("mlp", "ffn", "feed_forward", "up", "down", "dense")),
    ("oscillator", ("populations", "bank", "core", "phases", "omega")),
)


def component_of(model: nn.Module, path: str) -> str:
    """What a parameter is part of: rwkv, mamba, fusion, norm, embedding, head, attention, mlp, oscillator or
    mixer. A model with several kinds of mixer says it itself, in a method `component(path)`.
    """
    own: Callable[[str], str] | None = getattr(model, "component", None)
    if own is not None:
        return own(path)
    names = path.split(".")
    if any("norm" in name or name.startswith("ln") or name.endswith("_ln") for name in names):
        return "norm"
    for tag, parts in _COMPONENTS:
        if any(name in parts for name in names):
            return tag
    # A family of one mixer is named for it; in a hybrid, the mixers are.
    mixers = ("rwkv", "mamba", "fusion", "attention")
    family = getattr(model, "model_type", "")
    return next((tag for tag in mixers if tag in family or tag in names), "mixer")


def head_of(model: nn.Module, parameters: dict[str, Any]) -> dict[str, Any]:
    """The part of a tree of parameters that `model.project` reads: the head's, or the embedding's where tied.

    What is frozen is not in `parameters` and is taken from the model.
    """
    modules = dict(model.named_modules())
    embeddings = nn.Embedding | nn.QuantizedEmbedding
    tied = (name for name, module in modules.items() if isinstance(module, embeddings))
    path = next(name for name in ("lm_head", "head", "host.lm_head", "host.head", *tied) if name in modules)
    names = path.split(".")
    head = reduce(lambda tree, name: tree.get(name, {}), names, parameters) or modules[path].parameters()
    return reduce(lambda tree, name: {name: tree}, reversed(names), head)


def continue_in_place(model: LanguageModel, tokens: mx.array, cache: Cache | None) -> mx.array:
    """Logits of `tokens`, the new state written into `cache`: what `model(tokens, cache)` is.

    mlx-lm hands in its own cache objects. They carry the lengths of right-padded prompts, counted from the
    first token of this call, and count down with `advance`.
    Shapes: tokens [B, T] -> [B, T, V].
    """
    T = tokens.shape[1]
    lengths = getattr(cache[0], "lengths", None) if cache else None
    if lengths is not None:
        # A chunk of a longer prompt may end before a row does, or begin after it ended.
        lengths = mx.clip(lengths, 0, T)
    out = model.forward(tokens, cache, lengths=lengths)
    if cache is not None:
        write_back(cache, out.cache)
        for entry in cache:
            if hasattr(entry, "advance"):
                entry.advance(T)
    return out.logits


def write_back(cache: Cache, new: Cache) -> None:
    """Store the arrays of `new` into the entries of `cache`, slot by slot (mlx-lm's convention)."""
    for entry, slots in zip(cache, new, strict=True):
        for i, array in enumerate(slots):
            entry[i] = array


@dataclass(frozen=True)
class Trained:
    """A model with the tokenizer and the provenance it came with; what `kssm_mlx.load` returns.

    It unpacks into the two: `model, tokenizer = kssm_mlx.load(path)`.
    """

    model: LanguageModel
    tokenizer: Any
    source: str
    digest: str
    notes: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.tokenizer))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Any:
        return (self.model, self.tokenizer)[i]
