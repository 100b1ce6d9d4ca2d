"""What `kssm train` was asked to train, and where: a recipe, a run that goes on, or the recipe of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from kssm_mlx.errors import ConfigError
from kssm_mlx.runs.layout import MANIFEST, RECIPE, is_run
from kssm_mlx.runs.records import read_manifest


class Choice(NamedTuple):
    """verify, waivers: as the run began; True and none for a new one."""

    recipe: Any
    folder: Path
    verify: bool = True
    waivers: dict[str, str] = {}  # noqa: RUF012  a default that nobody writes to


def choose(named: str | None, out: Path | None, settings: list[str], *, smoke: bool, resume: bool) -> Choice:
    """The recipe and the run folder.

    named: a shipped recipe, a TOML file, a run folder, or a run's recipe.json; None with `resume` and `out`.
    Raises: ConfigError for what is none of these, and for a run that is to go on without `resume`.
    """
    from kssm_mlx.training.recipe import load, parse_override

    overrides = dict(parse_override(text) for text in settings)
    path = Path(named).expanduser() if named else out
    if path is None:
        raise ConfigError("which recipe? kssm train default trains the shipped one, kssm recipes lists all")
    if named is None and not is_run(path):
        raise ConfigError(f"{path} is no run that could go on; name a recipe: kssm train RECIPE --out {path}")
    run = path if is_run(path) else path.parent if path.name == RECIPE and is_run(path.parent) else None
    if run is None:
        folder = out or Path("runs") / f"{path.stem}{'-smoke' if smoke else ''}"
        return Choice(load(str(named), overrides, smoke=smoke), folder)
    return _choose_run(run, path, out, overrides, smoke=smoke, resume=resume)


def _choose_run(
    run: Path, path: Path, out: Path | None, overrides: dict[str, Any], *, smoke: bool, resume: bool
):
    from kssm_mlx.runner.folder import read_run_recipe
    from kssm_mlx.training.recipe import override

    if smoke:
        raise ConfigError(
            f"{run} is a run, which has no smoke form; take its recipe: kssm train RECIPE --smoke"
        )
    again = out is None or out.resolve() == run.resolve()
    if again and not resume:
        raise ConfigError(
            f"{run} is a run: kssm train {run} --resume goes on with it, "
            f"kssm train {run / RECIPE} --out FOLDER begins another one like it"
        )
    recipe = override(read_run_recipe(run), overrides)
    if out is not None and not again:
        return Choice(recipe, out)
    manifest = read_manifest(run) if (run / MANIFEST).is_file() else {}
    return Choice(recipe, run, manifest.get("verify", True), manifest.get("waivers", {}))
