"""[freeze], [clamp] and [noise] of a recipe: what stays as it began, and what is held or disturbed.

Both become arguments of the step: masks on the update, so that what is frozen is bit-equal under decay too,
and an intervention in every forward pass of training and evaluation. A resumed run takes them from its
recipe again.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Intervention, LanguageModel, component_of, flatten
from kssm_mlx.models.interventions.calibration import require_effect
from kssm_mlx.models.interventions.freeze_units import block_paths, freeze_masks
from kssm_mlx.models.interventions.spec import Act, Amplitude, Detach, Noise, Silence
from kssm_mlx.models.recurrent import RecurrentModel
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.steering_sections import Clamp, Freeze
from kssm_mlx.training.steering_sections import Noise as NoiseSection

ACTS = {"route": Detach, "ablate": Silence}  # what a mode does beside freezing


class Constraints(NamedTuple):
    """What a recipe holds of a model, if anything. warnings: for whoever runs it."""

    masks: dict[str, mx.array]
    intervention: Intervention | None
    warnings: list[str]


def build_constraints(recipe: Recipe, model: LanguageModel) -> Constraints:
    """The masks and the intervention of [freeze], [clamp] and [noise].

    Raises: ConfigError for units that the model does not have, a clamp that would do nothing, a tied head
        that cannot be frozen.
    """
    freeze, clamp, noise = recipe.freeze, recipe.clamp, recipe.noise
    acts = (
        *(_select_unit_acts(freeze) if freeze else ()),
        *(_amplitude(clamp) if clamp else ()),
        *(_noise(noise) if noise else ()),
    )
    intervention = Intervention(acts=acts) if acts else None
    head = freeze is not None and freeze.head
    # A model without `hidden` lists no sites, and its acts are refused by then.
    recurrent = cast(RecurrentModel, model)
    warnings = require_effect(recurrent, intervention, head_is_trained=not head) if intervention else []
    return Constraints(mask_units(freeze, model) if freeze else {}, intervention, warnings)


def mask_units(freeze: Freeze, model: LanguageModel) -> dict[str, mx.array]:
    """Parameter -> where it may move. Raises: ConfigError as `build_constraints`."""
    held = freeze_masks(model, freeze.units, mode=freeze.mode, count=freeze.of, shared=freeze.shared)
    return held | (_mask_head(model) if freeze.head else {})


def _mask_head(model: LanguageModel) -> dict[str, mx.array]:
    """Masks that hold the head and the final norm."""
    arrays, blocks = flatten(model.parameters()), tuple(f"{path}." for path in block_paths(model))
    tags = {name: component_of(model, name) for name in arrays if not name.startswith(blocks)}
    if "head" not in tags.values():
        raise ConfigError("freeze.head needs a head of its own; this model's is tied to the embedding")
    held = [name for name, tag in tags.items() if tag in ("head", "norm")]
    return {name: mx.zeros((1,) * arrays[name].ndim, mx.bool_) for name in held}


def _select_unit_acts(freeze: Freeze) -> tuple[Act, ...]:
    act = ACTS.get(freeze.mode)
    return (act(units=tuple(freeze.units), of=freeze.of),) if act else ()


def _amplitude(clamp: Clamp) -> tuple[Act, ...]:
    target = _per_unit(clamp.target)
    return (Amplitude(site=clamp.site, kind=clamp.kind, scope=clamp.scope, target=target, of=clamp.of),)


def _noise(noise: NoiseSection) -> tuple[Act, ...]:
    return (Noise(site=noise.site, level=noise.level, rms=_per_unit(noise.rms), of=noise.of),)


def _per_unit(size: float | list[float]) -> float | mx.array:
    return mx.array(size) if isinstance(size, list) else size
