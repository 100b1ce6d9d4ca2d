"""Where base models that were trained here are kept: `base = "recipe:NAME"` of a recipe.

~/.cache/kssm-mlx/hosts/NAME-DIGEST/  run/  model/      ($KSSM_CACHE; DIGEST is that of the recipe)
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from kssm_mlx.errors import ConfigError
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.recipe_sections import Pretrained
from kssm_mlx.weights.audit import verified


def locate_base_model(section: Pretrained) -> str:
    """What is opened as the base model: the section's, or the folder of the recipe's model.

    Raises: ConfigError where that has not been trained on this machine.
    """
    if section.recipe is None:
        return section.base
    model = cache_folder(section.recipe) / "model"
    if not model.is_dir():
        raise ConfigError(
            f"the base model {section.base} is not on this machine; kssm train on the recipe makes it"
        )
    return str(model)


def cache_folder(name: str) -> Path:
    # As written: an option that a later version adds does not make it another base model.
    recipe = recipes.load(name).model_dump(mode="json", exclude={"about"}, exclude_unset=True)
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return verified.store().parent / "hosts" / f"{Path(name).stem}-{digest[:12]}"
