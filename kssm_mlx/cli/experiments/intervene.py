"""`kssm intervene`: hold a quantity inside a trained model, and see what its predictions lose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kssm_mlx.errors import ConfigError


def intervene(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one of its checkpoints.")],
    hold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=VALUE,...", help="What is held, and at which values.  [default: R=0.2,0.5,0.8]"
        ),
    ] = None,
    block: Annotated[str, typer.Option(help="Which block, or all.")] = "all",
    tokens: Annotated[
        str, typer.Option(metavar="A:B", help="Where in each window; ':' is everywhere.")
    ] = ":",
    direction: Annotated[
        bool,
        typer.Option("--direction", help="Hold the direction psi, at 0, 1.6 and 3.1 radians, and not R."),
    ] = False,
    carried: Annotated[
        bool, typer.Option("--carried", help="Hold the carried state too, not only what is read.")
    ] = False,
    units: Annotated[str, typer.Option(help="Which populations, such as 0,1,2, or all.")] = "all",
    window: Annotated[
        int | None, typer.Option(min=2, help="Length of a window, tokens.  [default: the run's context]")
    ] = None,
    scored: Annotated[
        int | None,
        typer.Option(min=256, help="Held-out tokens to read.  [default: the recipe's eval.tokens]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the placebo's directions.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Hold R (or another quantity) on held-out text, against a placebo of the same size.

    Exit code 1 where the hold or the positive control does not act: then nothing was measured.
    """
    import json

    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.data.batches import evaluation_windows
    from kssm_mlx.data.tokens import TokenData
    from kssm_mlx.experiments import intervene as effects_of
    from kssm_mlx.runner.load import load
    from kssm_mlx.runs.layout import find_run
    from kssm_mlx.runs.records import read_recipe

    if hold and direction:
        raise ConfigError("--direction holds psi in place of R; give it, or --hold, not both")
    folder = find_run(run)
    if folder is None:
        raise ConfigError(f"{run} is no run folder; kssm intervene needs a run and its held-out text")
    asked = hold or (["psi=0,1.6,3.1"] if direction else ["R=0.2,0.5,0.8"])
    holds = effects_of.parse_holds(asked, block, tokens, "state" if carried else "readout", units)
    trained, recipe = load(run), read_recipe(folder)
    windows = evaluation_windows(
        TokenData.open(folder / "data").validation,
        scored or recipe["eval"]["tokens"],
        window or recipe["train"]["context"],
        recipe["train"]["batch_size"],
    )
    effects = effects_of.measure_effects(trained.model, windows, holds, seed=seed)
    if as_json:
        rows = {
            e.hold.name: {k: getattr(e, k).tolist() for k in ("nats", "kl", "placebo_nats", "placebo_kl")}
            for e in effects
        }
        return typer.echo(json.dumps(rows))
    screen = console()
    show(screen, table(effects_of.HEADER, effects_of.tell_effects(effects), str(run)))
    screen.print(effects_of.conclude(effects), soft_wrap=True)
