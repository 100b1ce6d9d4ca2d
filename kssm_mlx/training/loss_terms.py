"""What is added to the cross-entropy, one term at a time, each with a column of its own.

    [loss.uncertainty]          objective = cross-entropy + weight · value + ...
    weight = 0.1                `loss` in metrics.jsonl stays the cross-entropy alone; `term_uncertainty` is
    target = 0.5                weight · value, `uncertainty_U` a part of it

A term is a function (logits, targets, trace, its options) -> (value [], parts): of the predictions at the
scored positions and of what the model wrote into its trace. A value is a mean, never a sum over tokens; with
accumulation it is taken of each piece, and the column is their mean by tokens.

The precursors added terms that were plain numbers when the gradient was taken. They are here as `legacy_*`:
the same value, no gradient. `form = "published"` is a term as it was written, where that was not as meant.
K-SSM v3 printed a total of CE + reg and trained on CE + 0.5 reg; `term_bistability` is what is trained on.

Source: docs/background/steering.md#loss-terms; docs/background/hybrids.md#entropy-terms.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import mlx.core as mx
from pydantic import Field

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.training.observables import entropy, uncertainty
from kssm_mlx.training.steering_sections import Share

Value = tuple[mx.array, dict[str, mx.array]]
Form = Literal["repaired", "published"]
Token = Annotated[int, Field(ge=0)]


TERMS: dict[str, Callable[..., Value]] = {}
READ_LOGITS: set[str] = set()  # terms for which all logits must stand in memory together


def loss_term(name: str, *, reads_logits: bool = False, legacy: bool = False):
    """Register a term under its name in [loss]; its keyword-only arguments are its options.

    legacy: also as `legacy_NAME`, the same value as a number that nothing can lower, which is what a Python
    float in a loss is.
    """

    def register(term: Callable[..., Value]) -> Callable[..., Value]:
        TERMS[name] = term
        if legacy:
            TERMS[f"legacy_{name}"] = _constant(term)
        if reads_logits:
            READ_LOGITS.update({name, f"legacy_{name}"} & TERMS.keys())
        return term

    return register


def _constant(term: Callable[..., Value]) -> Callable[..., Value]:
    def detach_value(logits, targets, trace, **options) -> Value:
        value, parts = term(logits, targets, trace, **options)
        return mx.stop_gradient(value), parts

    detach_value.__wrapped__ = term
    return detach_value


@loss_term("uncertainty", reads_logits=True, legacy=True)
def uncertainty_off_target(logits, targets, trace, *, target: Share = 0.5) -> Value:
    """|U - target|, U the mean entropy of the predictions over ln V."""
    U = uncertainty(logits, targets)
    return mx.abs(U - target), {"U": U}


@loss_term("presence", reads_logits=True)
def presence(logits, targets, trace, *, form: Form = "repaired") -> Value:
    """mean Σp²: rewards predictions that keep several tokens present. Published: mean (1 - Σp²), which
    minimised rewards the peaked predictions that it was meant against.
    """
    # The sum of squares is the chance that two draws agree: 1 / V where all tokens are present alike.
    peaked = _mean(mx.sum(mx.square(_probabilities(logits)), axis=-1), targets)
    return (peaked if form == "repaired" else 1 - peaked), {}


@loss_term("tonal", legacy=True)
def tonal(logits, targets, trace, *, limit: Share = 0.8) -> Value:
    """max(R - limit, 0), R the mean of all blocks: against over-synchronisation."""
    R = _mean_of(trace, "R", "tonal")
    return mx.maximum(R - limit, 0.0), {"R": R}


@loss_term("coherence")
def coherence(
    logits,
    targets,
    trace,
    *,
    kind: Literal["ceiling", "center", "band"] = "band",
    target: Share = 0.45,
    width: Share = 0.1,
) -> Value:
    """The square of what R is above the target, off it, or off it by more than `width`."""
    R = _mean_of(trace, "R", "coherence")
    off = {"ceiling": R - target, "center": mx.abs(R - target), "band": mx.abs(R - target) - width}[kind]
    return mx.square(mx.maximum(off, 0.0)), {"R": R}


@loss_term("bistability")
def bistability(
    logits, targets, trace, *, determinant: float = 0.1, barrier: float = 0.5, epsilon: float = 1e-5
) -> Value:
    """determinant / (|Δ| + ε) - barrier · ln max(u, ε), with the means of |Δ| and u of a block, mean over
    blocks. Of a u that is clamped the barrier has no gradient; it falls through u = 1 without a minimum.
    """
    delta, u = (_require_quantity(trace, name, "bistability") for name in ("delta", "u"))
    det = _average([determinant / (mx.mean(mx.abs(d)) + epsilon) for d in delta])
    wall = _average([-barrier * mx.log(mx.maximum(mx.mean(x), epsilon)) for x in u])
    return det + wall, {"determinant": det, "barrier": wall}


@loss_term("eos", reads_logits=True)
def eos(logits, targets, trace, *, token: Token = 0) -> Value:
    """The mean probability given to `token`."""
    return _mean(_probabilities(logits)[..., token], targets), {}


@loss_term("legacy_eos")
def eos_share(logits, targets, trace, *, token: Token = 0) -> Value:
    """The share of `token` among the targets, padding included: a property of the data alone."""
    return mx.mean((mx.maximum(targets, 0) == token).astype(mx.float32)), {}


@loss_term("output_entropy", reads_logits=True)
def output_entropy(logits, targets, trace) -> Value:
    """Minus the mean entropy of the predictions, nats: against mode collapse."""
    H = _mean(entropy(logits), targets)
    return -H, {"nats": H}


@loss_term("gate_entropy")
def gate_entropy(logits, targets, trace, *, form: Form = "repaired") -> Value:
    """Minus the mean entropy of the gates between two branches, nats: a bonus for using both. Published: with
    the sign that drives gates to one branch.
    """
    # Logarithms at 0 and 1 have no gradient that a step could use.
    shares = [mx.clip(g, 1e-6, 1 - 1e-6) for g in _require_quantity(trace, "gate", "gate_entropy")]
    H = _average([-mx.mean(g * mx.log(g) + (1 - g) * mx.log(1 - g)) for g in shares])
    return (-H if form == "repaired" else H), {"nats": H}


@loss_term("diversity")
def diversity(logits, targets, trace) -> Value:
    """(1 + cos(R, M)) / 2 of the outputs of the RWKV and the Mamba branch: 0 opposed, 1 alike."""
    pairs = zip(*(_require_quantity(trace, name, "diversity") for name in ("rwkv", "mamba")), strict=True)
    alike = _average([mx.mean(_cosine(r, m)) for r, m in pairs])
    return (1 + alike) / 2, {"cosine": alike}


@loss_term("arbiter")
def arbiter(logits, targets, trace) -> Value:
    """-ln of the share that the gate gives to the branch nearer to what was fused, nats."""
    names = ("rwkv", "mamba", "gate")
    blocks = zip(*(_require_quantity(trace, name, "arbiter") for name in names), strict=True)
    return _average([_arbiter_loss(r, m, gate) for r, m, gate in blocks]), {}


class Term(NamedTuple):
    """One summand of the objective: `weight` times the value of `function(logits, targets, trace)`.

    reads_logits: whether all logits must stand in memory together; a large vocabulary is read in chunks
    otherwise.
    """

    name: str
    weight: float
    function: Callable[..., Value]
    reads_logits: bool


def parse_terms(section: Mapping[str, Mapping[str, Any]], vocab_size: int | None = None) -> tuple[Term, ...]:
    """The terms of a `[loss]` section, {"uncertainty": {"weight": 0.1, "target": 0.5}}.

    Raises: ConfigError for an unknown term or option (with the nearest), a wrong value, or no weight; and for
        a token that a vocabulary of this size does not have.
    """
    found = tuple(_term(name, options) for name, options in section.items())
    for name, options in section.items():
        if vocab_size is not None and (token := options.get("token", 0)) >= vocab_size:
            raise ConfigError(f"loss.{name}.token is {token}, but the ids are 0 to {vocab_size - 1}")
    return found


def compute_columns(
    terms: Sequence[Term], logits: mx.array | None, targets: mx.array, trace: dict[str, Any]
) -> dict[str, mx.array]:
    """`term_<name>`, the weighted value, and `<name>_<part>` of each term."""
    found = {}
    for term in terms:
        own = {name: isolate_node(a) for name, a in trace.items() if isinstance(a, mx.array)}
        value, parts = term.function(
            None if logits is None else isolate_node(logits), isolate_node(targets), own
        )
        found[f"term_{term.name}"] = term.weight * value
        found |= {f"{term.name}_{part}": number for part, number in parts.items()}
    return found


def isolate_node(a: mx.array) -> mx.array:
    """The same array as a node that `mx.compile` merges with no other, nor what is computed from it.

    Where it merges nodes with several users (the mask of scored positions in two terms) or an output with a
    node inside (R in a term and as a column), MLX 0.32.4 can lose an edge: "_Map_base::at".
    """
    return mx.depends(a, a)


def _term(name: str, options: Mapping[str, Any]) -> Term:
    from pydantic import FiniteFloat, TypeAdapter, ValidationError

    if name not in TERMS:
        raise ConfigError(f"unknown term {name!r}{nearest(name, TERMS)}; the terms are {', '.join(TERMS)}")
    function = inspect.unwrap(TERMS[name])
    allowed: dict[str, Any] = get_type_hints(function, include_extras=True) | {"weight": FiniteFloat}
    known = {
        "weight",
        *(n for n, p in inspect.signature(function).parameters.items() if p.kind == p.KEYWORD_ONLY),
    }
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"unknown key '{name}.{option}'{nearest(option, known)}")
        try:
            TypeAdapter(allowed[option]).validate_python(value, strict=True)
        except ValidationError as e:
            said = e.errors()[0]["msg"]
            raise ConfigError(f"{name}.{option}: {said[0].lower()}{said[1:]}, got {value!r}") from None
    if "weight" not in options:
        raise ConfigError(f"{name}.weight is missing: what the value of the term is multiplied with")
    own = {option: value for option, value in options.items() if option != "weight"}
    return Term(name, options["weight"], partial(TERMS[name], **own), name in READ_LOGITS)


def _probabilities(logits: mx.array) -> mx.array:
    return mx.softmax(logits.astype(mx.float32), axis=-1, precise=True)


def _mean(values: mx.array, targets: mx.array) -> mx.array:
    """Over the scored positions. Shapes: values, targets [B, T] -> []."""
    scored = targets >= 0
    return mx.sum(mx.where(scored, values, 0.0)) / mx.maximum(mx.sum(scored), 1)


def _require_quantity(trace: dict[str, Any], quantity: str, term: str) -> list[mx.array]:
    """A quantity of every block, fp32. Raises: ConfigError where no block has it."""
    found = [a.astype(mx.float32) for name, a in sorted(trace.items()) if name.endswith(f"/{quantity}")]
    if not found:
        raise ConfigError(
            f"loss.{term} reads {quantity!r} from the model's trace, which has none; take the term out, or "
            "train a model that has it"
        )
    return found


def _mean_of(trace: dict[str, Any], quantity: str, term: str) -> mx.array:
    return _average([mx.mean(a) for a in _require_quantity(trace, quantity, term)])


def _average(values: list[mx.array]) -> mx.array:
    return mx.mean(mx.stack(values))


def _cosine(a: mx.array, b: mx.array) -> mx.array:
    """Of vectors on the last axis; 0 where one of them is 0."""
    sizes = mx.sum(a * a, axis=-1) * mx.sum(b * b, axis=-1)
    return mx.sum(a * b, axis=-1) * mx.rsqrt(mx.maximum(sizes, 1e-24))


def _arbiter_loss(rwkv: mx.array, mamba: mx.array, gate: mx.array) -> mx.array:
    """Shapes: rwkv, mamba [B, T, D], gate broadcasts to them, the share of RWKV -> []."""
    fused = mx.stop_gradient(gate * rwkv + (1 - gate) * mamba)
    far = [mx.mean(mx.square(branch - fused), axis=-1) for branch in (rwkv, mamba)]
    share = mx.mean(mx.broadcast_to(gate, rwkv.shape), axis=-1)
    chosen = mx.where(far[0] <= far[1], share, 1 - share)
    return -mx.mean(mx.log(mx.maximum(chosen, math.exp(-16))))
