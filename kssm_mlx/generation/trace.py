"""What a model was in while it wrote: one row per token, of the quantities that `stream` observes.

    {"row": 0, "token": 3, "id": 101, "text": "e", "logprob": -0.7, "U": 0.41,
     "R": {"mean": 0.52, "blocks": [0.48, 0.56], "units": [[...], [...]]}}

A quantity is of the pass that drew the token, which read everything before it. "omega" is by how much psi has
moved since the token before, in radians per token; null at the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.errors import ConfigError
from kssm_mlx.generation.text import Completion, make_decoder
from kssm_mlx.models.base import LanguageModel, training_mode

ANGLES = ("psi", "theta")
UNCERTAINTY = "U"
PHASE, FREQUENCY = "psi", "omega"
PROBE = 3  # tokens; a length that tells the axis of time from others


def list_quantities(model: LanguageModel) -> list[str]:
    """What of this model can be observed per token and unit, and U, which every model has."""
    with training_mode(model, False):
        trace = model.forward(mx.zeros((1, PROBE), mx.int32)).trace
    per_token = [n for n, a in trace.items() if getattr(a, "ndim", 0) == 3 and a.shape[1] == PROBE]
    found = [*dict.fromkeys(map(_quantity_of, per_token))]
    return [*found, *([FREQUENCY] if PHASE in found else []), UNCERTAINTY]


def list_observed(names: Sequence[str]) -> tuple[str, ...]:
    """What `stream` has to observe so that rows can have these."""
    return tuple(dict.fromkeys(PHASE if name == FREQUENCY else name for name in names))


def require_quantities(model: LanguageModel, names: Sequence[str]) -> None:
    """Raises: ConfigError for a quantity that this model does not have, and for none at all."""
    there = list_quantities(model)
    if absent := [name for name in names if name not in there]:
        raise ConfigError(f"this model has no {absent[0]!r} to trace; it has {', '.join(there)}")
    if not names:
        raise ConfigError(f"no quantity to trace; this model has {', '.join(there)}")


def trace_rows(
    completion: Completion,
    tokenizer: Tokenizer,
    row: int = 0,
    *,
    names: Sequence[str] = (),
    units: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows of one completion: of everything that was observed, or of these.

    units: also every value of every block, and not the means alone.
    """
    decoder = make_decoder(tokenizer, completion.prompt)
    observed = _add_frequencies(completion.observed) if FREQUENCY in names else completion.observed
    drawn = zip(completion.ids, completion.logprobs, observed, strict=True)
    for token, (id, logprob, seen) in enumerate(drawn):
        kept = {name: values for name, values in seen.items() if not names or _quantity_of(name) in names}
        told = {"row": row, "token": token, "id": id, "text": decoder.push(id), "logprob": logprob}
        yield told | _summarize(kept, units)


def _quantity_of(name: str) -> str:
    """ "block00/psi" -> "psi"."""
    return name.rpartition("/")[2]


def _add_frequencies(observed: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """How far each phase has moved since the token before, in (-π, π]; nan at the first."""
    phases = [name for name in (observed[0] if observed else ()) if _quantity_of(name) == PHASE]
    out = []
    for before, now in zip([None, *observed[:-1]], observed, strict=True):
        moved = {
            name.removesuffix(PHASE) + FREQUENCY: np.full_like(now[name], np.nan)
            if before is None
            else np.angle(np.exp(1j * (now[name].astype(np.float64) - before[name])))
            for name in phases
        }
        out.append({**now, **moved})
    return out


def _summarize(observed: dict[str, np.ndarray], units: bool) -> dict[str, Any]:
    blocks: dict[str, list[np.ndarray]] = {}
    for name in sorted(observed):
        blocks.setdefault(_quantity_of(name), []).append(observed[name])
    return {name: _quantity(name, values, units) for name, values in blocks.items()}


def _quantity(name: str, blocks: list[np.ndarray], units: bool) -> Any:
    """U is one number; the rest have a mean, one a block, and if asked all there is."""
    if name == UNCERTAINTY:
        return float(blocks[0])
    means = [_mean(name, values) for values in blocks]
    told: dict[str, Any] = {"mean": _mean(name, np.array(means)), "blocks": means}
    if units:
        told["units"] = [values.tolist() for values in blocks]
    return _without_nan(told)


def _without_nan(value: Any) -> Any:
    """JSON has no nan; null says that there is nothing."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if value != value else value


def _mean(name: str, values: np.ndarray) -> float:
    """Of angles on the circle, in (-π, π]."""
    if name in ANGLES:
        return float(np.angle(np.exp(1j * values.astype(np.float64)).mean()))
    return float(values.astype(np.float64).mean())
