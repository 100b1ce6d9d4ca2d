"""Files in, a model with verified weights out; or an error that names the check, and no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx.digest import root_digest
from kssm_mlx.models.base import LanguageModel
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.audit.findings import LAYERS, require
from kssm_mlx.weights.audit.inspect import Inspection, Meter, inspect
from kssm_mlx.weights.io.tensors import FLOATS, TensorInfo
from kssm_mlx.weights.naming.keymaps import TRANSFORMS

STRUCTURE = (*LAYERS["L0"], "W6", "W7", "W8")  # without these there is no model to load


@dataclass(frozen=True)
class LoadedWeights:
    """model: every array in memory. notes: what a run that uses them should record."""

    model: LanguageModel
    config: Any
    inspection: Inspection
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The root digest of the files."""
        return root_digest(self.inspection.digests)


class Arrays(dict):
    """Tensors as MLX arrays, kept while `inspect` passes over them: one reading for checks and model."""

    def keep(self, name: str, info: TensorInfo, stored: np.ndarray) -> None:
        self[name] = info.array(stored)


def load_weights(
    path: str | Path,
    *,
    verify: bool = True,
    dtype: mx.Dtype | None = None,
    expected: Mapping[str, str] | None = None,
    promised: Mapping[str, str] | None = None,
    meter: Meter | None = None,
) -> LoadedWeights:
    """The model of a folder or a file, after L0 to L3.

    verify: False raises only where no model can be made of the files; what else was found is in the notes.
    dtype: of the weights, by default that of the files; what sets the dynamics is float32 in any case.
    expected, promised, meter: see `inspect`.
    Raises: WeightMismatch naming the failed checks; ConfigError for a path without weights.
    """
    arrays = Arrays()
    found = inspect(
        path, expected=expected, promised=promised, meter=meter, keep=arrays.keep, go_on=not verify
    )
    require((f for f in found.findings if verify or f.check in STRUCTURE), path)
    model = fill(found, arrays, dtype)
    if verify:
        verified.remember(found, "L3")
    notes = {"verified": "L3" if verify else None, "findings": [str(f) for f in found.findings]}
    return LoadedWeights(model, found.config, found, notes)


def fill(found: Inspection, arrays: Arrays, dtype: mx.Dtype | None = None) -> LanguageModel:
    """Give the model of an inspection its numbers; each tensor of the files is let go when ours is made."""
    model = found.model
    assert model is not None  # the findings of STRUCTURE were raised
    may_cast = getattr(model, "cast_predicate", lambda path: True)
    weights = []
    for ours, (source, transform) in found.names.pairs.items():
        array = TRANSFORMS[transform](arrays.pop(source))
        if found.container.info(source).dtype in FLOATS:
            array = array.astype((dtype or array.dtype) if may_cast(ours) else mx.float32)
        array = mx.contiguous(array)
        mx.eval(array)
        weights.append((ours, array))
    model.load_weights(weights, strict=True)
    mx.eval(model.parameters())
    if settle := getattr(model, "settle", None):
        settle()
    return model
