"""From logits to a token: small pure functions on [B, V], applied in the order of `Sampling`.

Each filter sets what it rules out to minus infinity and leaves the rest as it was, so filters compose and the
distribution that is left is the softmax of what they return. The order is the usual one: repetition penalty,
temperature, top-k, top-p, min-p. Ties at a threshold are all kept, so the result never depends on the order
in which a sort happens to put them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx

from kssm_mlx.errors import ConfigError

NOTHING = -1  # what an unused slot of the history holds


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature: 0 takes the most likely token, "R" follows the model's coherence (`coherence_temperature`).
    top_k: keep that many tokens, 0 keeps all. top_p: keep the most likely tokens that hold this share of the
    probability. min_p: keep tokens at least this likely relative to the most likely one. repetition_penalty:
    how much less likely the latest `repetition_window` tokens become, 1 is off.

    Raises: ConfigError for a value outside its range.
    """

    temperature: float | Literal["R"] = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64

    def __post_init__(self):
        t = self.temperature
        ranges = {
            "temperature": (t == "R" if isinstance(t, str) else t >= 0, "0 or more, or R"),
            "top_k": (self.top_k >= 0, "0 (off) or a number of tokens"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "repetition_window": (self.repetition_window >= 1, "1 or more"),
        }
        for name, (good, expected) in ranges.items():
            if not good:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {expected}")


def coherence_temperature(trace: dict[str, Any]) -> mx.array:
    """1.5 - 0.5 R at the last token, R averaged over blocks and groups. Shapes: -> [B, 1].

    The more coherent, the cooler: K-SSM v1's sampling.
    Raises: ConfigError for a trace without R.
    """
    R = [mx.mean(R[:, -1].astype(mx.float32), axis=-1) for name, R in trace.items() if name.endswith("/R")]
    if not R:
        raise ConfigError(
            "temperature R follows the order parameter, and this model has none; give a number, such as 0.8"
        )
    return (1.5 - 0.5 * sum(R, start=mx.array(0.0)) / len(R))[:, None]


def repetition_penalty(logits: mx.array, history: mx.array, penalty: float) -> mx.array:
    """Make the tokens of `history` less likely: positive logits divided by `penalty`, negative multiplied.

    Shapes: logits [B, V], history [B, W] int32 with `NOTHING` in unused slots -> [B, V].
    Source: Keskar et al. 2019, CTRL, section 4.1; the form for negative logits as in Hugging Face.
    """
    B, V = logits.shape
    # Unused slots land in a column that is cut off; MLX does not check where it writes.
    slots = mx.where((history >= 0) & (history < V), history, V)
    seen = mx.put_along_axis(mx.zeros((B, V + 1), dtype=mx.bool_), slots, mx.array(True), axis=-1)[:, :V]
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k(logits: mx.array, k: int) -> mx.array:
    """Keep the k largest logits of each row. Shapes: [B, V] -> [B, V]."""
    if k >= logits.shape[-1]:
        return logits
    return _keep(logits, logits >= mx.min(mx.topk(logits, k, axis=-1), axis=-1, keepdims=True))


def top_p(logits: mx.array, p: float) -> mx.array:
    """Keep the smallest set of most likely tokens whose probabilities reach p. Shapes: [B, V] -> [B, V].

    Source: Holtzman et al. 2020, nucleus sampling, equation 2.
    """
    ordered = -mx.sort(-logits, axis=-1)
    probabilities = mx.softmax(ordered, axis=-1, precise=True)
    mass_before = mx.cumsum(probabilities, axis=-1) - probabilities
    last_kept = mx.min(mx.where(mass_before < p, ordered, mx.inf), axis=-1, keepdims=True)
    return _keep(logits, logits >= last_kept)


def min_p(logits: mx.array, p: float) -> mx.array:
    """Keep tokens with at least p times the probability of the most likely one. Shapes: [B, V] -> [B, V].

    Source: Nguyen et al. 2024, min-p sampling, section 3.
    """
    best = mx.max(logits, axis=-1, keepdims=True)
    return _keep(logits, logits >= best + mx.log(mx.array(p, dtype=logits.dtype)))


def apply_filters(
    logits: mx.array, history: mx.array, sampling: Sampling, trace: dict[str, Any] | None = None
) -> mx.array:
    """The logits that are sampled from, in fp32, with every filter that is switched on applied in order.

    trace: of the model at this token, which temperature "R" reads.
    """
    logits = logits.astype(mx.float32)
    if sampling.repetition_penalty != 1:
        logits = repetition_penalty(logits, history, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    t = sampling.temperature
    logits = logits / (coherence_temperature(trace or {}) if isinstance(t, str) else t)
    if sampling.top_k:
        logits = top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = top_p(logits, sampling.top_p)
    return min_p(logits, sampling.min_p) if sampling.min_p else logits


def sample(
    logits: mx.array,
    history: mx.array,
    keys: mx.array,
    sampling: Sampling,
    trace: dict[str, Any] | None = None,
) -> tuple[mx.array, mx.array]:
    """The next token of each row and the keys for the one after; a row reads only its own logits and key.

    Shapes: logits [B, V], history [B, W], keys [B, 2] uint32 -> tokens [B] int32, keys [B, 2].
    """
    logits = apply_filters(logits, history, sampling, trace)
    if sampling.temperature == 0:
        return mx.argmax(logits, axis=-1).astype(mx.int32), keys
    # A key per row: what a row draws does not depend on who else is in the batch.
    halves = mx.vmap(mx.random.split)(keys)
    draw = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))
    return draw(logits, halves[:, 1]).astype(mx.int32), halves[:, 0]


def _keep(logits: mx.array, kept: mx.array) -> mx.array:
    return mx.where(kept, logits, -mx.inf)
