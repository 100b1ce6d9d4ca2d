"""Checks that other packages bring: a module named under the entry point group `kssm.checks`.

    [project.entry-points."kssm.checks"]
    mine = "mypackage.checks"

Importing that module registers its checks by `@check`; from then on they are run, explained and waived like
our own. docs/checks-own.md shows one whole.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from kssm_mlx.errors import ConfigError

GROUP = "kssm.checks"


@cache
def load() -> None:
    """Import every plug-in, once.

    Raises: ConfigError naming the package whose checks cannot be used: to leave them out would look like a
    pass.
    """
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.value
        try:
            point.load()
        except Exception as e:
            raise ConfigError(
                f"the checks of {package} ({point.value}) cannot be used: {type(e).__name__}: {e}; "
                f"mend them, or pip uninstall {package}"
            ) from e
