"""The model a run starts from: freshly initialised, or a base model that somebody else trained, verified.

Both are the same on every start, so a checkpoint need only hold what is trained: every parameter, or the
adapters, the initial state and the graft beside a frozen base model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import mlx.core as mx

from kssm_mlx import models
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import CheckpointError, ConfigError, WeightMismatch
from kssm_mlx.models import adapters
from kssm_mlx.models.base import LanguageModel, Trained, flatten
from kssm_mlx.models.grafts.configs import configure
from kssm_mlx.models.grafts.graft import graft
from kssm_mlx.models.prompt_tuning import begin_text
from kssm_mlx.runner.base_model_cache import locate_base_model
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.runs.layout import RECIPE
from kssm_mlx.training.budget.fit import refuse_large_base, there_is_memory
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.recipe_sections import Model, Pretrained
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.hub.resolve import resolve
from kssm_mlx.weights.io.container import open_container
from kssm_mlx.weights.quantize import quantize


@dataclass(frozen=True)
class InitialModel:
    """model: with what the recipe trains made trainable; base_digest: the root digest of its weights, or
    None; base_notes: how far these were verified ("verified") and what was found ("findings").
    """

    model: LanguageModel
    base_digest: str | None = None
    base_notes: dict[str, Any] = field(default_factory=dict)


def build_initial_model(
    recipe: Recipe, data: TokenData, *, base_digest: str | None = None, verify: bool = True
) -> InitialModel:
    """The model before the first step.

    base_digest: the root digest that the base model had when the run began. verify: False, or verify = false
    in the recipe, takes a base model that has not passed verification.
    Raises: ConfigError for a configuration or a base model that cannot be trained on this data;
        WeightMismatch for one that has not passed `kssm verify-weights`, or that has changed since the run
        began; CheckFailed for one trained here that does not pass.
    """
    section, seed = recipe.model, recipe.train.seed
    if isinstance(section, Pretrained):
        return _build_on_base(section, data, seed, base_digest, verify)
    return InitialModel(models.build(configure_fresh(recipe, data.vocab_size), seed=seed))


def configure_fresh(recipe: Recipe, vocab_size: int):
    """The configuration of a recipe's fresh model. Raises: ConfigError as `models.configure`."""
    section = cast(Model, recipe.model)
    return models.configure(
        section.family,
        section.size,
        vocab_size=vocab_size,
        context=recipe.train.context,
        overrides=section.overrides,
    )


def rebuild_initial_model(
    recipe: Recipe, data: TokenData, saved: dict[str, Any], *, verify: bool = True
) -> InitialModel:
    """The model that a run began with; `saved` is its recipe.json. The rest as `build_initial_model`."""
    if isinstance(recipe.model, Pretrained):
        return _build_on_base(recipe.model, data, recipe.train.seed, saved.get("host_digest"), verify)
    configuration = saved.get("configuration")
    if not isinstance(configuration, dict):
        raise CheckpointError(
            f"{data.folder.parent / RECIPE} has no configuration of a model; restore it from a copy of the "
            "run, or train again in another folder"
        )
    config = models.config_from_dict(configuration)
    return InitialModel(models.build(config, seed=recipe.train.seed))


def load_trained_parameters(model: LanguageModel, trained: dict[str, mx.array]) -> None:
    """Load what a checkpoint holds, which must be exactly what is trained in `model`.

    Raises: CheckpointError that names what is missing or unknown.
    """
    # Knobs and buffers are no parameters, and a run goes on with what they had become.
    beside = (*getattr(model, "knobs", ()), *getattr(model, "buffers", ()))
    moving = {*flatten(model.trainable_parameters()), *beside}
    if other := trained.keys() ^ moving:
        raise CheckpointError(
            f"the checkpoint and the model disagree on {', '.join(sorted(other)[:3])}; "
            "the recipe.json beside it is not the one it was trained with"
        )
    model.load_weights(list(trained.items()), strict=False)
    # Arrays are read when they are used first, and the checkpoint may be gone by then.
    mx.eval(model.parameters())


def _build_on_base(
    section: Pretrained, data: TokenData, seed: int, expected: str | None, verify: bool
) -> InitialModel:
    verify, source = verify and section.verify, locate_base_model(section)
    stored = open_container(resolve(source).path)
    weights = sum(tensor.size for tensor in stored.tensors.values())
    # From the headers, before gigabytes are read.
    refuse_large_base(section.base, stored.nbytes, weights, there_is_memory())
    base = _open_verified(source) if verify else open_model(source, verify=False)
    if expected not in (None, base.digest):
        raise WeightMismatch(
            f"{section.base} has root digest {base.digest[:12]}, the run began with {expected[:12]}; "
            "give the run its own base model back, or start a new run"
        )
    _refuse_other_tokens(base, data)
    return InitialModel(adapt_base(base.model, section, seed), base.digest, base.notes)


def adapt_base(model: LanguageModel, section: Pretrained, seed: int) -> LanguageModel:
    """A base model with what is trained in it or beside it. Raises: ConfigError where that is nothing."""
    if section.quantize:
        quantize(model, **section.quantize.model_dump())
    if section.train in ("lora", "dora", "qlora"):
        adapters.attach_lora(model, section.rank, section.alpha, seed, section.train)
    if section.train in ("state", "prompt"):
        prompt = section.prompt_tokens if section.train == "prompt" else 0
        model = begin_text(model, prompt, seed)
        mx.eval(model.parameters())
    # Before the graft, which is what is trained.
    if section.train == "frozen":
        model.freeze()
    if section.graft:
        model = graft(model, configure(section.graft), seed)
    if not flatten(model.trainable_parameters()):
        raise ConfigError(
            'model.train = "frozen" leaves nothing to train in a base model without additions; '
            'take "lora" or "full", or give it a [model.graft]'
        )
    return model


def _open_verified(source: str) -> Trained:
    """The base model, if all of `kssm verify-weights` has passed for exactly these weights."""
    passed = verified.is_verified(resolve(source).path, "L5")
    advice = f"run kssm verify-weights {source}"
    if passed is None:
        raise WeightMismatch(
            f"{source} has not passed verification, or its files were touched since; {advice}"
        )
    base = open_model(source)
    if base.digest != passed["root"]:
        raise WeightMismatch(
            f"{source} has root digest {base.digest[:12]}, what passed verification had "
            f"{passed['root'][:12]}; {advice}"
        )
    return replace(base, notes={**base.notes, "verified": passed["level"]})


def _refuse_other_tokens(base: Trained, data: TokenData) -> None:
    """Raises: ConfigError when the data's ids would mean other text to the base model."""
    if base.tokenizer is not None and base.tokenizer.digest != data.tokenizer.digest:
        raise ConfigError(
            f"data.tokenizer is {data.tokenizer.name!r}, which is not the base model's own; "
            f'set data.tokenizer = "hf:{base.source}"'
        )
    rows = base.model.args.vocab_size
    if data.vocab_size > rows:
        raise ConfigError(
            f"the tokenizer has {data.vocab_size} tokens, the base model's embedding {rows} rows; "
            "use the tokenizer that the base model was trained with"
        )
