"""Where checks come from: the rooms of this package, and packages that bring their own.

A module in one of `ROOMS` registers its checks when it is imported, so a new check is one new file. Another
package names a module under the entry point group `kssm.checks`:

    [project.entry-points."kssm.checks"]
    mine = "mypackage.checks"

From then on its checks are run, explained and waived like our own. docs/checks-own.md shows one whole.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from kssm_mlx.errors import ConfigError

GROUP = "kssm.checks"
ROOMS = ("data", "model", "state", "training", "oscillators", "claims", "pretrained", "machine")


def load_rooms() -> None:
    """Import every module of our own that registers checks."""
    for room in ROOMS:
        package = import_module(f"kssm_mlx.checks.{room}")
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)


@cache
def load() -> None:
    """Import our own checks and every plug-in, once.

    Raises: ConfigError naming the package whose checks cannot be used: to leave them out would look like a
    pass.
    """
    load_rooms()
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.value
        try:
            point.load()
        except Exception as e:
            raise ConfigError(
                f"the checks of {package} ({point.value}) cannot be used: {type(e).__name__}: {e}; "
                f"mend them, or pip uninstall {package}"
            ) from e
