"""The architectures by name: `configure` turns words into a configuration, `build` that into a model."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from kssm_mlx.errors import ConfigError, nearest, quote
from kssm_mlx.models.families.family import Family
from kssm_mlx.models.families.gru import FAMILY as GRU
from kssm_mlx.models.families.kssm import FAMILY as KSSM
from kssm_mlx.models.families.mamba import FALCON as FALCON_MAMBA
from kssm_mlx.models.families.mamba import FAMILY as MAMBA
from kssm_mlx.models.families.mamba2 import FAMILY as MAMBA2
from kssm_mlx.models.families.mlx_lm import FAMILY as MLX_LM
from kssm_mlx.models.families.rwkv4 import FAMILY as RWKV4
from kssm_mlx.models.families.rwkv7 import FAMILY as RWKV7
from kssm_mlx.models.families.transformer import FAMILY as TRANSFORMER
from kssm_mlx.parsing import adapter_of

SIZES = ("xs", "s", "m", "l")


FAMILIES: dict[str, Family] = {
    "kssm": KSSM,
    "kssm_v1": Family("precursors.kssm_v1", "KSSMv1Config", "KSSMv1"),
    "kssm_v2": Family("precursors.kssm_v2", "KSSMv2Config", "KSSMv2"),
    "kssm_v3": Family("precursors.kssm_v3", "KSSMv3Config", "KSSMv3"),
    "mamba": MAMBA,
    "falcon_mamba": FALCON_MAMBA,
    "mamba2": MAMBA2,
    "rwkv": RWKV4,
    "rwkv7": RWKV7,
    "hybrid": Family("hybrids.parallel", "HybridConfig", "Hybrid"),
    "hybrid_v3": Family("hybrids.v3", "HybridV3Config", "HybridV3"),
    "gru": GRU,
    "transformer": TRANSFORMER,
    "mlx_lm": MLX_LM,
}


def _family(name: str) -> Family:
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(
            f"no model family {quote(name)}; known: {', '.join(FAMILIES)}{nearest(str(name), FAMILIES)}"
        )
    return FAMILIES[name]


def configure(
    family: str = "kssm",
    size: str = "s",
    *,
    vocab_size: int,
    context: int = 128,
    overrides: dict[str, Any] | None = None,
):
    """The frozen configuration of a family at a size, with single fields overridden.

    Raises: ConfigError for an unknown family, size or field (naming the nearest) and for a value of a
        wrong type.
    """
    module, _, _ = _family(family).load()
    if size not in SIZES:
        raise ConfigError(f"no size {size!r}; sizes are {', '.join(SIZES)}")
    base = asdict(module.preset(size, vocab_size, context))
    return config_from_dict({**base, **(overrides or {}), "model_type": family})


def config_to_dict(config) -> dict[str, Any]:
    """A configuration as plain values, with its `model_type`."""
    return asdict(config)


def config_from_dict(values: dict[str, Any]):
    """The inverse of `config_to_dict`, also after a way through JSON.

    Raises: ConfigError unless every key is a field of the family and has its type.
    """
    from pydantic import ValidationError

    name = values.get("model_type", "kssm")
    _, config_class, _ = _family(name).load()
    known = [f.name for f in fields(config_class)]
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(_explain_unknown(unknown, known, name))
    try:
        # Strict, so that "3" is no number; by way of JSON, where a list is the only tuple.
        return adapter_of(config_class).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(str(part) for part in error["loc"]) or name
        raise ConfigError(f"model.{where}: {error['msg']}, got {quote(error['input'])}") from None


def _explain_unknown(keys: list[str], known: list[str], family: str) -> str:
    """Which keys a family does not have, and how those of another family are taken out of a recipe."""
    classes = {f.load()[1] for f in FAMILIES.values()}
    others = {f.name for config_class in classes for f in fields(config_class)}
    out = " ".join(f"--set model.{key}=" for key in keys)
    if len(keys) > 1 and others.issuperset(keys):
        return f"{family} has no keys {', '.join(keys)}; {out} takes them out of a recipe of another family"
    first = next((key for key in keys if key not in others), keys[0])
    said = f"unknown key 'model.{first}' for {family}{nearest(first, ('family', 'size', *known))}"
    return f"{said}; {out} takes it out of a recipe of another family" if first in others else said


def family_of(config) -> str:
    """The family's name, such as "kssm"."""
    return config.model_type


def _refuse_beyond_memory(model, config) -> None:
    """Raises: ConfigError for parameters that this machine cannot hold; nothing is allocated before."""
    import mlx.core as mx

    from kssm_mlx.models.base import flatten

    arrays = flatten(model.parameters()).values()
    needed, there = sum(array.nbytes for array in arrays), mx.get_memory_limit()
    if needed > there:
        raise ConfigError(
            f"a {family_of(config)} of {sum(array.size for array in arrays):,} parameters takes "
            f"{needed / 2**30:,.1f} GiB; this machine gives {there / 2**30:,.1f} GiB; take a smaller one"
        )


def count_parameters(config) -> int:
    """How many parameters a model of this configuration has; none is allocated."""
    from kssm_mlx.models.base import flatten

    return sum(array.size for array in flatten(outline(config).parameters()).values())


def outline(config):
    """A model whose parameters have shapes and are not computed: for counting, whatever its size."""
    _, _, model_class = _family(family_of(config)).load()
    return model_class(config, seed=0)


def build(config, seed: int = 0):
    """A model with freshly initialised parameters; the same seed gives the same bits.

    Raises: ConfigError for what is no configuration, or a model that this machine cannot hold.
    """
    from kssm_mlx.models.base import compute_parameters

    if not hasattr(config, "model_type"):
        raise ConfigError(
            f"build takes a configuration, got {type(config).__name__}; make one: "
            'kssm_mlx.build(kssm_mlx.models.configure("kssm", "s", vocab_size=256))'
        )
    _, _, model_class = _family(family_of(config)).load()
    model = model_class(config, seed=seed)
    _refuse_beyond_memory(model, config)
    compute_parameters(model)
    if settle := getattr(model, "settle", None):
        settle()
    return model
