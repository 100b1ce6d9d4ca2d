"""do(R): hold a quantity inside a model while it reads held-out text, and see what its predictions lose.

Every window is read four times: free; with the quantity held; with a placebo, what the head reads moved by
exactly as much as the hold moves it, token by token, in a random direction orthogonal to that move; and with
a positive control, the same blocks silenced, which must act or nothing here can be measured. All are paired
by window, the independent unit.

Source: docs/background/k-ssm.md#forcing-r.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx.checks.oscillators.noise_floor import measure_placebo
from kssm_mlx.errors import CheckFailed, ConfigError, nearest
from kssm_mlx.metrics import stats
from kssm_mlx.metrics.stats import Comparison
from kssm_mlx.models.base import Clamp, Intervention, training_mode
from kssm_mlx.training.losses import split_rows, token_scores

CONTROL = 1e-3  # nats by which silenced blocks must change the predictions


@dataclass(frozen=True)
class Hold:
    """One quantity held at one value, on tokens start <= t < stop of each window; of some units, or all."""

    site: str
    value: float
    block: int | None = None
    start: int = 0
    stop: int | None = None
    where: str = "readout"
    units: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.site}={self.value:g}"

    @property
    def intervention(self) -> Intervention:
        held = {"block": self.block, "start": self.start, "stop": self.stop}
        return Intervention((Clamp(self.site, self.value, where=self.where, units=self.units, **held),))

    @property
    def control(self) -> Intervention:
        return Intervention((Clamp("output", 0.0, block=self.block, start=self.start, stop=self.stop),))


@dataclass(frozen=True)
class Effect:
    """Per window: change of the loss in nats/token, and KL(free || held), of the hold and of its placebo.

    missed: largest |held value in the trace - value asked for|, NaN where the trace does not tell it.
    Shapes: nats, kl, placebo_nats, placebo_kl, control [windows].
    """

    hold: Hold
    nats: np.ndarray
    kl: np.ndarray
    placebo_nats: np.ndarray
    placebo_kl: np.ndarray
    control: np.ndarray
    missed: float

    @property
    def against_placebo(self) -> Comparison:
        """KL of the hold less that of its placebo, paired by window."""
        return stats.compare_paired(dict(enumerate(self.kl)), dict(enumerate(self.placebo_kl)))

    @property
    def change(self) -> Comparison:
        """Loss with the hold less loss without, paired by window."""
        return stats.compare_paired(dict(enumerate(self.nats)), dict.fromkeys(range(self.nats.size), 0.0))


def parse_holds(
    texts: Sequence[str],
    block: str = "all",
    tokens: str = ":",
    where: str = "readout",
    units: str = "all",
) -> list[Hold]:
    """["R=0.2,0.5"] -> two holds. tokens: "a:b" of each window; units: "0,3". Raises: ConfigError."""
    try:
        chosen = None if units == "all" else tuple(int(unit) for unit in units.split(","))
    except ValueError:
        raise ConfigError(f"--units is all or numbers such as 0,1,2, got {units!r}") from None
    try:
        start, stop = (int(part) if part else None for part in tokens.split(":"))
        at = None if block == "all" else int(block)
    except ValueError:
        raise ConfigError(
            f"--block is all or a number and --tokens a:b such as 64:128, got {block!r} and {tokens!r}"
        ) from None
    if (start or 0) < 0 or (stop is not None and stop <= (start or 0)):
        raise ConfigError(f"--tokens {tokens} holds no token; expected a:b with 0 <= a < b, such as 64:128")
    holds = []
    for text in texts:
        site, equals, values = text.partition("=")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if not (equals and site and numbers):
            raise ConfigError(f"--hold takes SITE=VALUE,... such as R=0.2,0.5,0.8, got {text!r}")
        holds += [Hold(site, value, at, start or 0, stop, where, chosen) for value in numbers]
    return holds


def require_sites(model: Any, holds: Sequence[Hold]) -> None:
    """Raises: ConfigError for a quantity that this model cannot hold, or a model without inner states."""
    sites = getattr(model, "clamp_sites", ())
    if not hasattr(model, "hidden") or "output" not in sites:
        raise ConfigError(f"{type(model).__name__} has no clamp sites; there is nothing to hold")
    for hold in holds:
        if hold.site not in sites:
            raise ConfigError(
                f"this model holds {', '.join(sites)}, not {hold.site!r}{nearest(hold.site, sites)}"
            )


def measure_effects(model: Any, windows: Iterable, holds: Sequence[Hold], *, seed: int = 0) -> list[Effect]:
    """The effect of every hold on every window.

    windows: (tokens int [N, T+1], resets bool [N, T] or None), as `data.batches` gives them.
    Raises: ConfigError as `require_sites`; CheckFailed where a hold changes no logit at all, or silencing the
        blocks does not act: then the apparatus does not reach the predictions, and no effect can be told.
    """
    require_sites(model, holds)
    found: list[list[tuple]] = [[] for _ in holds]
    with training_mode(model, training=False):
        # One pass free for all holds, which is what they are compared with.
        for number, (tokens, resets) in enumerate(windows):
            tokens = mx.array(tokens)
            resets = None if resets is None else mx.array(resets)
            _require_tokens(holds, tokens.shape[1] - 1)
            free = _Reading(model, tokens, resets, None)
            for i, hold in enumerate(holds):
                found[i].append(_treat(model, tokens, resets, free, hold, seed + number))
    effects = [_join(hold, parts) for hold, parts in zip(holds, found, strict=True)]
    for effect in effects:
        _require_acting(effect)
    return effects


def _require_tokens(holds: Sequence[Hold], length: int) -> None:
    """Raises: ConfigError for a hold that begins behind the end of the windows."""
    for hold in holds:
        if hold.start >= length:
            raise ConfigError(
                f"{hold.name} is held from token {hold.start} on, a window has {length}; --window sets its "
                "length"
            )


class _Reading:
    """One pass over a batch: what the head read, log probabilities, nats per target, trace."""

    def __init__(self, model, tokens, resets, intervention, hidden=None):
        inputs, self.targets = split_rows(tokens)
        self.trace: dict[str, Any] = {}
        if hidden is None:
            hidden, _, self.trace = model.hidden(inputs, None, intervention, resets=resets)
        logits = model.project(hidden).astype(mx.float32)
        self.hidden = np.array(hidden.astype(mx.float32))
        self.logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        self.nats = np.array(token_scores(logits, self.targets)[0]).astype(np.float64)

    @property
    def scored(self) -> np.ndarray:
        return np.array(self.targets) >= 0


def _treat(model, tokens, resets, free: _Reading, hold: Hold, seed: int) -> tuple:
    held = _Reading(model, tokens, resets, hold.intervention)
    # In what the head reads, so that the placebo is as large where it counts, whatever was held upstream.
    moved = held.hidden.astype(np.float64) - free.hidden
    pushed = free.hidden + measure_placebo(moved, seed, keep=moved)
    placebo = _Reading(model, tokens, resets, None, mx.array(pushed.astype(np.float32)))
    control = _Reading(model, tokens, resets, hold.control)
    means = [
        _by_window(values, free.scored)
        for values in (
            held.nats - free.nats,
            _kl(free, held),
            placebo.nats - free.nats,
            _kl(free, placebo),
            _kl(free, control),
        )
    ]
    return (*means, _measure_miss(held.trace, hold))


def _kl(free: _Reading, other: _Reading) -> np.ndarray:
    """KL(free || other) per target, in nats. Shapes: [N, T]."""
    # From log probabilities: a probability of 0 in fp32 would make the quotient infinite.
    return np.array((mx.exp(free.logp) * (free.logp - other.logp)).sum(axis=-1)).astype(np.float64)


def _by_window(values: np.ndarray, scored: np.ndarray) -> np.ndarray:
    return np.where(scored, values, 0.0).sum(axis=1) / np.maximum(scored.sum(axis=1), 1)


def _measure_miss(trace: dict[str, Any], hold: Hold) -> float:
    """How far the held quantity is from what was asked for, where it was held."""
    found = [
        np.array(value)[:, hold.start : hold.stop, _columns(hold)] - hold.value
        for name, value in trace.items()
        if name.partition("/")[2] == hold.site and hold.block in (None, int(name[5:7]))
    ]
    if hold.site == "psi":  # 9 radians are held as 9 - 2 pi
        found = [np.angle(np.exp(1j * off)) for off in found]
    return float(max(np.abs(off).max() for off in found)) if found else float("nan")


def _columns(hold: Hold) -> Any:
    return slice(None) if hold.units is None else list(hold.units)


def _join(hold: Hold, parts: list[tuple]) -> Effect:
    *arrays, missed = zip(*parts, strict=True)
    return Effect(hold, *(np.concatenate(array) for array in arrays), missed=max(missed))


def _require_acting(effect: Effect) -> None:
    if not effect.control.mean() >= CONTROL:
        raise CheckFailed(
            f"silencing the blocks changes the predictions by {effect.control.mean():.1e} nats, expected "
            f"{CONTROL:g} or more: they do not reach the logits, and holding something in them means nothing"
        )
    if not effect.kl.any():
        raise CheckFailed(
            f"holding {effect.hold.name} changes no logit: the treatment was not applied; hold another "
            "quantity, or look for a norm or a branch that takes it out"
        )


def tell_effects(effects: Sequence[Effect]) -> list[tuple[str, ...]]:
    """One row per hold: what is held, change of the loss, KL, placebo, their difference, p after Holm."""
    against = stats.correct_for_multiplicity([effect.against_placebo for effect in effects])
    rows = []
    for effect, found in zip(effects, against, strict=True):
        change = effect.change
        rows.append(
            (
                effect.hold.name,
                "" if np.isnan(effect.missed) else f"{effect.missed:.0e}",
                f"{change.difference:+.4f} ± {change.high - change.difference:.4f}",
                f"{effect.kl.mean():.4f}",
                f"{effect.placebo_kl.mean():.4f}",
                f"{found.difference:+.4f} ± {found.high - found.difference:.4f}",
                f"{found.p:.2g}",
                f"{effect.control.mean():.3f}",
            )
        )
    return rows


HEADER = (
    "held",
    "off by",
    "loss, nats/token",
    "KL, nats",
    "placebo KL",
    "beyond placebo",
    "p (Holm)",
    "control KL",
)


def conclude(effects: Sequence[Effect]) -> str:
    """One sentence: does what was held reach the predictions beyond a push of the same size?"""
    against = stats.correct_for_multiplicity([effect.against_placebo for effect in effects])
    beyond = [
        e.hold.name for e, c in zip(effects, against, strict=True) if c.p < stats.ALPHA and c.difference > 0
    ]
    n = effects[0].kl.size
    if not beyond:
        return (
            f"No hold moves the predictions more than a push of its size does ({n} windows): "
            "this is no evidence that the model uses it."
        )
    rest = [e.hold.name for e in effects if e.hold.name not in beyond]
    also = f"; {', '.join(rest)} does not" if rest else ""
    return (
        f"Holding {', '.join(beyond)} moves the predictions more than a push of its size does, "
        f"p < {stats.ALPHA} after Holm, {n} windows of one run{also}."
    )
