"""docs/reference/recipe.md from the classes that read recipes; run as a module, it writes the page."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kssm_mlx import files
from kssm_mlx.data.tasks import TASKS
from kssm_mlx.models import FAMILIES, configure
from kssm_mlx.models.grafts.configs import GRAFTS
from kssm_mlx.oscillators.zones import PROFILES, TARGETS, Profile
from kssm_mlx.training import recipe_sections as sections
from kssm_mlx.training import steering_sections as steering
from kssm_mlx.training.curriculum import sections as phases
from kssm_mlx.training.loss_terms import TERMS
from tests.docs.meanings import MEANINGS
from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "reference" / "recipe.md"
SECTIONS: dict[str, type] = {
    "about": sections.About,
    "about.expected": sections.Expected,
    "data": sections.Data,
    "data.sources": sections.Source,
    "model": sections.Model,
    "model, with base": sections.Pretrained,
    "model.quantize": sections.Quantize,
    "train": sections.Train,
    "train.groups.TAG": steering.Group,
    "monitor": steering.Monitor,
    "monitor.patience": steering.Patience,
    "control": steering.Control,
    "freeze": steering.Freeze,
    "clamp": steering.Clamp,
    "noise": steering.Noise,
    "phase": phases.Phase,
    "curriculum": phases.Curriculum,
    "eval": sections.Eval,
    "save": sections.Save,
    "failure": sections.Failure,
}
HEAD = """# Reference of recipe keys

Made by `python -m tests.docs.recipe_reference` from the classes that read recipes; edit those.
[Recipes](../recipes.md) says how sections work together. `kssm train NAME --set section.key=value` sets a
key, `--set section.key=` takes it out.
A key without a default must be given where its section is; an unknown key is refused with the nearest name.
`[waive]` has check ids and reasons, `[smoke]` any of these sections.
"""
NUMBERS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "min_length": "at least {}"}
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "nothing"}


def render() -> str:
    """The whole page."""
    parts = [HEAD, *(_section(name, cls) for name, cls in SECTIONS.items())]
    parts += [_profiles(), _targets(), "## Loss terms\n", LOSS, *(_term(n, f) for n, f in TERMS.items())]
    parts += ["## Tasks\n", TASK, *(_fields(f"data.task of task:{n}", t, t()) for n, t in TASKS.items())]
    parts += ["## Grafts\n", GRAFT, *(_fields(f"model.graft, core {n}", g, None) for n, g in GRAFTS.items())]
    parts += ["## Families\n", FAMILY, *map(_family, FAMILIES)]
    return "\n".join(parts)


LOSS = """Every term takes `weight`, a number that must be given: what its value is multiplied with.
A name with `legacy_` in front is the same value without a gradient.
"""
TASK = """With `source = "task:NAME"`, any field of the task; `train.context` must be the number of targets
of a row.
"""
GRAFT = """With `base`, phase cores inside it; [Recipes](../recipes.md#grafts) says what they are.
"""
FAMILY = """Beside `family` and `size`, any field of the family's configuration. Defaults are those of size
`s` with a vocabulary of 256 and a context of 128, which come from the data and `train.context`.
"""


def _section(name: str, cls: Any) -> str:
    keys = [
        (
            f"`{key}`",
            words(field.annotation, field.metadata),
            _default(field),
            _unit(field),
            field.description,
        )
        for key, field in cls.model_fields.items()
    ]
    return f"## {name}\n\n{_prose(cls)}\n\n{_table(('key', 'type', 'default', 'unit', 'meaning'), keys)}"


def _term(name: str, function: Callable) -> str:
    own = inspect.unwrap(function)
    hints = get_type_hints(own, include_extras=True)
    keys = [
        (f"`{p.name}`", words(hints[p.name], ()), f"`{_toml(p.default)}`")
        for p in inspect.signature(own).parameters.values()
        if p.kind == p.KEYWORD_ONLY
    ]
    table = _table(("option", "type", "default"), keys) if keys else "No options.\n"
    return f"### loss.{name}\n\n{_prose(own)}\n\n{table}"


def _family(name: str) -> str:
    config = configure(name, "s", vocab_size=256, context=128)
    return _fields(f"family {name}", type(config), config)


def _fields(title: str, cls: type, instance: Any) -> str:
    hints, said = get_type_hints(cls, include_extras=True), MEANINGS | explained(cls)
    owner = title.split()[-1]
    keys = []
    for field in dataclasses.fields(cls):
        default = getattr(instance, field.name, field.default)
        shown = "" if default is dataclasses.MISSING else f"`{_toml(default)}`"
        keys.append(
            (
                f"`{field.name}`",
                words(hints[field.name], ()),
                shown,
                said.get(f"{owner}.{field.name}", said.get(field.name)),
            )
        )
    return f"### {title}\n\n{_table(('key', 'type', 'default', 'meaning'), keys)}"


def explained(cls: type) -> dict[str, str]:
    """Field -> what the docstrings of a class and of those it comes from say behind its name and a colon."""
    own, found = {f.name for f in dataclasses.fields(cls)}, {}
    for kind in reversed(cls.__mro__[:-1]):
        text = " ".join((kind.__doc__ or "").split())
        parts = re.split(r"(?:^|(?<=[.;:] ))((?:\w+, )*\w+): ", text)
        for names, meaning in zip(parts[1::2], parts[2::2], strict=False):
            found |= {n: meaning.rstrip(" .;") for n in names.split(", ") if n in own}
    return found


def _profiles() -> str:
    """What monitor.profile calls each range of R."""
    rows = [(f"`{name}`", _zones(p), p.used_by) for name, p in PROFILES.items()]
    table = _table(("profile", "names", "from"), rows)
    return f"## Profiles\n\nWhat `monitor.profile` calls a range of R.\n\n{table}"


def _zones(profile: Profile) -> str:
    sign = "<" if profile.closed else "≤"
    below = [f"{name} {sign} {edge:g}" for name, edge in zip(profile.names, profile.edges, strict=False)]
    return ", ".join([*below, f"{profile.names[-1]} above"])


def _targets() -> str:
    rows = [(f"`{name}`", _range(t.R), _range(t.U), t.used_by) for name, t in TARGETS.items()]
    table = _table(("target", "R", "U", "from"), rows)
    return f"## Targets\n\nWhat `monitor.target` aims for.\n\n{table}"


def _range(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:g} to {pair[1]:g}" if pair else ""


def words(annotation: Any, metadata: Iterable[Any]) -> str:
    """A type and its limits as a reader of TOML knows them."""
    limits = [
        text.format(f"{value:g}" if value < 1e7 else f"{value:.3g}")
        for m in metadata
        for name, text in NUMBERS.items()
        if (value := getattr(m, name, None)) is not None
    ]
    return ", ".join([_type(annotation), *limits])


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(inside[0], [m for a in inside[1:] for m in getattr(a, "metadata", [a])])
    if origin is Literal:
        return " or ".join(f"`{_toml(choice)}`" for choice in inside)
    if origin in (Union, UnionType):
        return " or ".join(_type(kind) for kind in inside if kind is not NoneType)
    if origin is tuple:
        return f"list of {_type(inside[0])}" if inside[-1] is ... else f"[{', '.join(map(_type, inside))}]"
    if origin is list:
        return f"list of {_type(inside[0])}"
    return NAMES.get(annotation, "table")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return ""
    return f"`{_toml(field.get_default(call_default_factory=True))}`"


def _toml(value: Any) -> str:
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _unit(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def _prose(of: Any) -> str:
    return " ".join((inspect.getdoc(of) or "").split())


def _table(head: tuple[str, ...], rows: Iterable[Iterable[str | None]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join((c or "").replace("|", "\\|") for c in line) + " |\n" for line in lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    files.replace(PAGE, render())
