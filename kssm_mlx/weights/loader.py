"""Files in, a model with verified weights out; or an error that names the check, and no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kssm_mlx.weights import verified
from kssm_mlx.weights.findings import LAYERS, require
from kssm_mlx.weights.inspect import Inspection, inspect
from kssm_mlx.weights.keymaps import TRANSFORMS
from kssm_mlx.weights.tensors import FLOATS, TensorInfo

STRUCTURE = (*LAYERS["L0"], "W6", "W7", "W8")  # without these there is no model to load


@dataclass(frozen=True)
class LoadedWeights:
    """model: every array in memory. digest: the root of its files. notes: what to record in a run."""

    model: nn.Module
    config: Any
    inspection: Inspection
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return self.inspection.root


def load_weights(
    path: str | Path,
    *,
    verify: bool = True,
    dtype: mx.Dtype | None = None,
    expected: Mapping[str, str] | None = None,
    promised: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
    started: Callable[[int], None] | None = None,
) -> LoadedWeights:
    """The model of a folder or a file, after L0 to L3.

    verify: False raises only where no model can be made of the files; what else was found is in the notes.
    dtype: of the weights, by default that of the files; what sets the dynamics is float32 in any case.
    expected, promised, progress, started: see `inspect`.
    Raises: WeightMismatch naming the failed checks; ConfigError for a path without weights.
    """
    arrays: dict[str, mx.array] = {}

    def keep(name: str, info: TensorInfo, stored: np.ndarray) -> None:
        arrays[name] = as_array(info, stored)

    found = inspect(path, expected=expected, promised=promised, progress=progress, started=started, keep=keep)
    require((f for f in found.findings if verify or f.check in STRUCTURE), path)
    _fill(found, arrays, dtype)
    if verify:
        verified.remember(found, "L3")
    notes = {"verified": "L3" if verify else None, "findings": [str(f) for f in found.findings]}
    return LoadedWeights(found.model, found.config, found, notes)


def as_array(info: TensorInfo, stored: np.ndarray) -> mx.array:
    """Memory-mapped numbers as an MLX array of their own."""
    array = mx.array(np.array(stored, order="C"))
    array = array.view(mx.bfloat16) if info.dtype == "bfloat16" else array
    mx.eval(array)
    return array


def _fill(found: Inspection, arrays: dict[str, mx.array], dtype: mx.Dtype | None) -> None:
    """Give the model its numbers, tensor by tensor: a file's is let go once ours is made of it."""
    weights = []
    may_cast = found.model.cast_predicate
    for ours, (source, transform) in found.names.pairs.items():
        array = TRANSFORMS[transform](arrays.pop(source))
        if found.container.info(source).dtype in FLOATS:
            array = array.astype((dtype or array.dtype) if may_cast(ours) else mx.float32)
        array = mx.contiguous(array)
        mx.eval(array)
        weights.append((ours, array))
    found.model.load_weights(weights, strict=True)
    mx.eval(found.model.parameters())
