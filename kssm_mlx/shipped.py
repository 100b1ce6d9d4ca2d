"""The TOML files that come with the package: recipes, published failures and experiments, by their names."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def find_shipped(folder: str = "") -> dict[str, Path]:
    """Name -> file in a folder of the recipes, `failures` or `experiments`, or directly there.

    An installed package has the recipes inside, a clone beside it at the top level.
    """
    package = Path(__file__).resolve().parent
    for home in (package / "recipes", package.parent / "recipes"):
        if home.is_dir():
            return {p.stem: p for p in sorted((home / folder).glob("*.toml"))}
    return {}
