"""Arguments of several commands, and what the Tab key offers for them (`kssm --install-completion`): recipes,
experiments, keys of settings, checks.

The shell waits for it, so a name costs no import of what the command would need. Where nothing fits, the
shell offers files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from kssm_mlx.shipped import find_shipped


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes; published failures once somebody has typed as far as them."""
    failures = [f"failures/{name}" for name in find_shipped("failures")]
    return _beginning(incomplete, [*find_shipped(), *(failures if incomplete.startswith("f") else [])])


def complete_experiment(incomplete: str) -> list[str]:
    """Shipped experiments."""
    return _beginning(incomplete, find_shipped("experiments"))


def complete_setting(ctx: typer.Context, incomplete: str) -> list[str]:
    """The keys of the recipe on the line, as `section.key=`; of `default` where there is none that loads."""
    from kssm_mlx.errors import KssmError
    from kssm_mlx.training.recipe import load

    # The option that is typed has no value yet, so nothing before it was given its name.
    named = (word for word in ctx.args if word in find_shipped() or word.endswith(".toml"))
    try:
        recipe = load(next(named, "default"))
    except (KssmError, OSError):
        recipe = load("default")
    keys = {*_list_keys(recipe.model_dump()), *_list_model_keys(getattr(recipe.model, "family", None))}
    return _beginning(incomplete, sorted(f"{key}=" for key in keys))


def complete_check(incomplete: str) -> list[str]:
    """Ids of checks, those of plug-ins too."""
    from kssm_mlx.checks.catalog import list_entries

    return _beginning(incomplete, list_entries())


def _beginning(incomplete: str, names: Any) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _list_model_keys(family: str | None) -> list[str]:
    """The sizes that a family can be given."""
    if family is None:
        return []
    from kssm_mlx.models import config_to_dict, configure

    of_the_data = {"vocab_size", "model_type"}
    return [f"model.{key}" for key in config_to_dict(configure(family, vocab_size=256)).keys() - of_the_data]


def _list_keys(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _list_keys(value, f"{prefix}{key}.")
        elif prefix:
            yield f"{prefix}{key}"


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one setting.",
        autocompletion=complete_setting,
    ),
]
