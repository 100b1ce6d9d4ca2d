"""What a model was in while it wrote: one row per token, of the quantities that `stream` observes.

    {"row": 0, "token": 3, "id": 101, "text": "e", "logprob": -0.7, "U": 0.41,
     "R": {"mean": 0.52, "blocks": [0.48, 0.56], "units": [[...], [...]]}}

A quantity is of the pass that drew the token, which read everything before it.
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
PROBE = 3  # tokens; a length that tells the axis of time from others


def list_quantities(model: LanguageModel) -> list[str]:
    """What of this model can be observed per token and unit, and U, which every model has."""
    with training_mode(model, False):
        trace = model.forward(mx.zeros((1, PROBE), mx.int32)).trace
    per_token = [n for n, a in trace.items() if getattr(a, "ndim", 0) == 3 and a.shape[1] == PROBE]
    return [*dict.fromkeys(name.rpartition("/")[2] for name in per_token), UNCERTAINTY]


def require_quantities(model: LanguageModel, names: Sequence[str]) -> None:
    """Raises: ConfigError for a quantity that this model does not have, and for none at all."""
    there = list_quantities(model)
    if absent := [name for name in names if name not in there]:
        raise ConfigError(f"this model has no {absent[0]!r} to trace; it has {', '.join(there)}")
    if not names:
        raise ConfigError(f"no quantity to trace; this model has {', '.join(there)}")


def trace_rows(
    completion: Completion, tokenizer: Tokenizer, row: int = 0, *, units: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of one completion. units: also every value of every block, and not the means alone."""
    decoder = make_decoder(tokenizer, completion.prompt)
    drawn = zip(completion.ids, completion.logprobs, completion.observed, strict=True)
    for token, (id, logprob, observed) in enumerate(drawn):
        told = {"row": row, "token": token, "id": id, "text": decoder.push(id), "logprob": logprob}
        yield told | _summarize(observed, units)


def _summarize(observed: dict[str, np.ndarray], units: bool) -> dict[str, Any]:
    blocks: dict[str, list[np.ndarray]] = {}
    for name in sorted(observed):
        blocks.setdefault(name.rpartition("/")[2], []).append(observed[name])
    return {name: _quantity(name, values, units) for name, values in blocks.items()}


def _quantity(name: str, blocks: list[np.ndarray], units: bool) -> Any:
    """U is one number; the rest have a mean, one a block, and if asked all there is."""
    if name == UNCERTAINTY:
        return float(blocks[0])
    means = [_mean(name, values) for values in blocks]
    told: dict[str, Any] = {"mean": _mean(name, np.array(means)), "blocks": means}
    return {**told, "units": [values.tolist() for values in blocks]} if units else told


def _mean(name: str, values: np.ndarray) -> float:
    """Of angles on the circle, in (-π, π]."""
    if name in ANGLES:
        return float(np.angle(np.exp(1j * values.astype(np.float64)).mean()))
    return float(values.astype(np.float64).mean())
