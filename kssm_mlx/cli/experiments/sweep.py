"""`kssm sweep`: a recipe with every combination of some settings; a table, no verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kssm_mlx.cli.arguments import Overrides, complete_recipe, complete_setting
from kssm_mlx.errors import ConfigError


def sweep(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe or a TOML file.", autocompletion=complete_recipe)
    ],
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="SECTION.KEY=A,B,...",
            help="A setting and its values; may be repeated.",
            autocompletion=complete_setting,
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of every combination.")] = 1,
    metric: Annotated[str, typer.Option(help="What the best is chosen by.")] = "nats_per_token",
    settings: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Its folder.  [default: experiments/sweep-RECIPE]")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Runs at a time.")] = 2,
    trials: Annotated[
        int | None,
        typer.Option(min=2, help="Search instead, by optuna, this many trials; --grid then takes LOW..HIGH."),
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe's smoke form.")] = False,
) -> None:
    """Train a recipe with every combination of the settings, and rank them.

    The ranking is of what was tried, on these seeds: it is no verdict, which kssm experiment gives.
    """
    from kssm_mlx.cli.live.experiment import watch_experiment
    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.experiments import sweep as sweeps
    from kssm_mlx.training.recipe import parse_override

    shared = dict(map(parse_override, settings or []))
    folder = out or Path("experiments") / f"sweep-{Path(recipe).stem}{'-smoke' if smoke else ''}"
    screen = console()
    if trials:
        ranges = dict(map(sweeps.parse_range, grid))
        rows = sweeps.search(recipe, ranges, trials, folder, metric, shared, smoke=smoke, say=screen.print)
        show(screen, table(("trial", *ranges, metric), rows, str(folder)))
        return
    design = sweeps.make_design(recipe, dict(map(parse_values, grid)), seeds, metric, shared)
    with watch_experiment(screen, design, folder) as watch:
        results = sweeps.run_grid(
            design, folder, watch, name=f"sweep-{Path(recipe).stem}", smoke=smoke, jobs=jobs
        )
    show(screen, table(("settings", "runs", metric, "95 %"), sweeps.rank(design, results), str(folder)))
    for line in sweeps.conclude(design, results):
        screen.print(line, soft_wrap=True, markup=False)


def parse_values(text: str) -> tuple[str, list[Any]]:
    """`train.steps=100,200` -> ("train.steps", [100, 200]). Raises: ConfigError."""
    from kssm_mlx.training.recipe import parse_override

    key, _, values = text.partition("=")
    found = [parse_override(f"{key}={value}")[1] for value in values.split(",") if value]
    if "." not in key or not found or len(found) < values.count(",") + 1:
        raise ConfigError(
            f"--grid takes SECTION.KEY=A,B,... such as train.learning_rate=1e-3,2e-3, got {text!r}"
        )
    return key.strip(), found
