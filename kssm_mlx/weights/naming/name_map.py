"""Layer L1: the configuration, the parameters it asks for, and which tensor of the files each of them is."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from kssm_mlx import models
from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.models.base import LanguageModel
from kssm_mlx.models.families.family import KeyMap
from kssm_mlx.models.mlx_lm.model import BUFFERS, MLXLM
from kssm_mlx.models.mlx_lm.walk import said_in_one_line
from kssm_mlx.weights.audit.findings import Finding, list_some
from kssm_mlx.weights.io.container import Container
from kssm_mlx.weights.io.tensors import FLOATS
from kssm_mlx.weights.naming import blinkdl, keymaps
from kssm_mlx.weights.naming.configs import from_file, from_state_spaces
from kssm_mlx.weights.naming.keymaps import TRANSFORMS
from kssm_mlx.weights.quantize import apply_quantization

_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")
_QUANTISED = re.compile(r"\.(scales|biases)$")


@dataclass(frozen=True)
class NameMap:
    """pairs: our name -> (name in the files, transform); unread: tensors that are rightly not taken, and the
    parameter each must equal (a tied head) or None; findings: W7 to W9.
    """

    pairs: dict[str, tuple[str, str]]
    unread: dict[str, str | None]
    findings: tuple[Finding, ...]


def configuration(container: Container) -> Any:
    """The configuration of a container's model. Raises: ConfigError that says which key is wrong."""
    values = container.config or {}
    try:
        if container.layout == "blinkdl":
            found = blinkdl.infer({name: t.shape for name, t in container.tensors.items()})
        elif container.layout == "run":
            found = models.config_from_dict(values)
        elif container.layout == "state-spaces":
            found = from_state_spaces(values)
        else:
            found = from_file(values)
        found = models.config_from_dict(models.config_to_dict(found))  # the types of every field
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as e:
        raise ConfigError(f"config.json has a value of a wrong kind: {e}") from None
    return found


def skeleton(config: Any, container: Container) -> LanguageModel:
    """The model, quantised where the files are, with parameters that are described but not computed yet.

    Raises: ConfigError for sizes that no model can have.
    """
    blocks = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layers", 0)
    # Before anything is built: a damaged file can ask for a million blocks.
    if blocks > len(container.tensors):
        raise ConfigError(
            f"config.json asks for {blocks:,} blocks, there are {len(container.tensors):,} tensors"
        )
    _, _, model_class = models.FAMILIES[models.family_of(config)].load()
    try:
        model = model_class(config)
        return apply_quantization(model, container.config or {}, container.tensors.keys())
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, RuntimeError) as e:
        raise ConfigError(f"no model has the sizes of this configuration: {e}") from None


def map_names(container: Container, config: Any, model: LanguageModel) -> NameMap:
    """Every parameter of `model` beside its tensor; what is missing, unused or of a wrong shape or dtype."""
    expected = dict(tree_flatten(model.parameters()))
    if isinstance(model, MLXLM) and container.layout != "run":
        try:
            rules, always = _rules_of_mlx_lm(container, model)
        except ConfigError as e:
            return NameMap({}, {}, (Finding("W7", str(e), "convert it with mlx_lm.convert, and give that"),))
    else:
        rules = keymaps.table(container.layout, config.model_type, list(expected))
        always = keymaps.unread(container.layout, config.model_type)
    pairs, unread, unused, findings = {}, {}, [], []
    for source in container.names:
        ours, transform = target(source, rules)
        if ours in expected and ours not in pairs:
            pairs[ours] = (source, transform)
        elif ours in pairs:
            findings.append(Finding("W7", f"{source} and {pairs[ours][0]} are both {ours}"))
        elif source in always:
            unread[source] = None
        elif (ours or source) in ("lm_head.weight", "head.weight"):
            unread[source] = next(name for name in expected if "embed" in name or ".wte." in name)
        else:
            unused.append(source)
    missing = sorted(expected.keys() - pairs.keys())
    findings += _totality(missing, unused, rules)
    findings += _shapes(container, pairs, expected) + _dtypes(container, pairs, expected)
    return NameMap(pairs, unread, tuple(findings))


def _rules_of_mlx_lm(container: Container, model: MLXLM) -> tuple[KeyMap, tuple[str, ...]]:
    """mlx-lm's own names of the tensors, and those that everybody computes anew.

    Raises: ConfigError where its loader makes a parameter of several tensors, or of one in another form.
    """
    stored = {n: mx.zeros(t.shape, getattr(mx, t.dtype)) for n, t in container.tensors.items()}
    with said_in_one_line(f"mlx-lm's {model.args.architecture} cannot read tensors of these names"):
        rules, made = model.key_map(stored)
    if made:
        raise ConfigError(
            f"mlx-lm's {model.args.architecture} makes {list_some(made)} out of other tensors when it loads, "
            "which no digest would cover"
        )
    return rules, tuple(name for name in container.names if name.endswith(BUFFERS))


def target(source: str, rules: KeyMap) -> tuple[str | None, str]:
    """Our name of a tensor, and the transform; None for a name that is in no rule.

    The parts of a quantised weight, `x.weight`, `x.scales` and `x.biases`, go together.
    """
    number = _BLOCK.search(source)
    pattern = _BLOCK.sub("{N}", source, count=1)
    # A name may have a number that is not a block's, which the table then holds as it is.
    for form in (pattern, source):
        part = _QUANTISED.search(form)
        whole = _QUANTISED.sub(".weight", form)
        if form in rules or whole in rules:
            ours, transform = rules.get(form) or rules[whole]
            if part and form not in rules:
                ours = f"{ours.removesuffix('weight')}{part[1]}"
            return ours.replace("{N}", number[0]) if number else ours, transform
    return None, "same"


def kind(name: str) -> str:
    """What a tensor is, whichever block it is in: its name without the number of the block."""
    return _BLOCK.sub("N", name, count=1)


def _totality(missing: list[str], unused: list[str], rules: KeyMap) -> list[Finding]:
    """W7 in both directions, with the nearest name as a hint."""
    findings = []
    if missing:
        hint = nearest(missing[0], unused)
        fix = "the files are incomplete or of another configuration; compare config.json with its source"
        findings.append(Finding("W7", f"{len(missing)} without a tensor: {list_some(missing)}{hint}", fix))
    if unused:
        hint = nearest(unused[0], [*missing, *rules])
        fix = "the files are of another model or configuration; compare config.json with its source"
        findings.append(Finding("W7", f"{len(unused)} that nothing takes: {list_some(unused)}{hint}", fix))
    return findings


def _shapes(container: Container, pairs: dict, expected: dict) -> list[Finding]:
    """W8, after the transform."""
    wrong = []
    for ours, (source, transform) in pairs.items():
        shape, needed = container.info(source).shape, tuple(expected[ours].shape)
        if transform_shape(shape, transform) != needed:
            wrong.append(f"{source} is {list(shape)}, {ours} needs {list(needed)}")
    fix = "config.json and the weights are of different models, or a size in config.json is wrong"
    return [Finding("W8", f"{len(wrong)} of wrong shape: {list_some(wrong, 2)}", fix)] if wrong else []


def transform_shape(shape: tuple[int, ...], transform: str) -> tuple[int, ...] | None:
    """The shape after a transform; None where it does not apply."""
    try:
        return TRANSFORMS[transform](np.broadcast_to(np.empty(()), shape)).shape
    except (ValueError, IndexError):
        return None


def _dtypes(container: Container, pairs: dict, expected: dict) -> list[Finding]:
    """W9: floats where floats belong, one dtype per kind, and the one that the configuration names."""
    found = {ours: container.info(source).dtype for ours, (source, _) in pairs.items()}
    needed = {ours: str(expected[ours].dtype).removeprefix("mlx.core.") for ours in found}
    readable = ("float32", "float16", "bfloat16")
    wrong = [
        f"{ours} is {dtype}"
        for ours, dtype in found.items()
        if (dtype not in readable if needed[ours] in FLOATS else dtype != needed[ours])
    ]
    kinds: dict[tuple[str, str], Counter] = {}
    alike = {ours: (kind(ours), _quantisation(ours, needed)) for ours in found}
    for ours, dtype in found.items():
        kinds.setdefault(alike[ours], Counter())[dtype] += 1
    usual = {k: counts.most_common(1)[0][0] for k, counts in kinds.items()}
    odd = [f"{ours} is {dtype}" for ours, dtype in found.items() if dtype != usual[alike[ours]]]
    fix = "convert the weights to float32, float16 or bfloat16 with the tool that wrote them"
    findings = [Finding("W9", f"{len(wrong)} of unusable dtype: {list_some(wrong)}", fix)] if wrong else []
    if odd and not wrong:
        findings.append(Finding("W9", f"{len(odd)} unlike their kind in other blocks: {list_some(odd)}"))
    return findings + _stated_dtype(container, set(found.values()))


def _quantisation(ours: str, needed: dict[str, str]) -> str:
    """How a tensor's module is quantised, by the dtype of its scales: a conversion may leave one as it is."""
    return needed.get(f"{ours.rpartition('.')[0]}.scales", "not at all")


def _stated_dtype(container: Container, found: set[str]) -> list[Finding]:
    values = container.config or {}
    stated = values.get("dtype") or values.get("torch_dtype")
    if container.layout != "hf" or stated not in FLOATS or stated in found or not found & set(FLOATS):
        return []
    fix = "config.json may be older than the weights; compare logits at L4"
    got = f"config.json says {stated}, the tensors are {', '.join(sorted(found))}"
    return [Finding("W9", got, fix, warning=True)]
