"""`kssm train`: a recipe becomes a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kssm_mlx.cli.arguments import Overrides, complete_recipe
from kssm_mlx.errors import CheckFailed, ConfigError, Interrupted
from kssm_mlx.runs.layout import METRICS, is_run
from kssm_mlx.terminal import printable


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A shipped recipe (see kssm recipes), a TOML file, or a run and its recipe.json.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.  [default: runs/RECIPE, runs/RECIPE-smoke]")
    ] = None,
    set_: Overrides = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="The recipe's [smoke] form: all that it does, tiny, in seconds.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest good checkpoint.")] = False,
    allow_config_change: Annotated[
        bool, typer.Option("--allow-config-change", help="Resume although the recipe has changed.")
    ] = False,
    waive: Annotated[
        list[str] | None, typer.Option(metavar='ID="REASON"', help="Go on although this check fails.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(help="Stop on a failed check (default). --no-verify: report it and go on."),
    ] = True,
    track: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Also send every row to trackio, or wandb:PROJECT.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved recipe and the estimate, and start nothing."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show every check, not only failures and warnings.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print nothing but errors; the run folder has all of it.")
    ] = False,
) -> None:
    """Train a model, verified before and after.

    kssm train RUN --resume goes on with a run as it began.

    Checks of data and model come first (level P), then training, with checks at every evaluation (R), checks
    of the result (S), samples, pictures and the card.
    mlx.launch -n 2 -- kssm train RECIPE trains in two processes, here or on several machines.
    Exit code 0 done, 1 a check failed, 2 unusable input, 130 or 143 stopped by a signal with a checkpoint.
    """
    from kssm_mlx.cli.run_choice import choose
    from kssm_mlx.training.parallel.ranks import Settled, open_ranks

    refuse_both(quiet, verbose)
    ranks = open_ranks()
    try:
        with ranks.end_together():
            chosen = choose(recipe, out, set_ or [], smoke=smoke, resume=resume)
    except Settled as e:
        raise typer.Exit(e.exit_code) from None
    loaded, folder, verify = chosen.recipe, chosen.folder, verify and chosen.verify
    waivers = {**chosen.waivers, **parse_waivers(waive or [])}
    if dry_run:
        from kssm_mlx.cli.estimate import show_dry_run

        show_dry_run(str(recipe or out), loaded, folder, waivers)
        return
    if not verify:
        loaded = disable_verification(loaded)

    from kssm_mlx.cli.tables import console
    from kssm_mlx.reports import report
    from kssm_mlx.runner.train import train as run

    out_to = console(quiet or not ranks.first)
    try:
        run(
            loaded,
            folder,
            resume=resume,
            allow_config_change=allow_config_change,
            waivers=waivers,
            verify=verify,
            track=track,
            console=out_to,
            ranks=ranks,
        )
    except Settled as e:
        raise typer.Exit(e.exit_code) from None
    except KeyboardInterrupt:  # during checks; a step ends first, with a checkpoint
        if not is_run(folder):
            raise
        raise Interrupted(f"interrupted; to go on: kssm train {folder} --resume") from None
    except CheckFailed:
        if (folder / METRICS).is_file():  # it was trained: show what the verdict is about
            _show(out_to, folder, report(folder), verbose)
        raise
    if ranks.first:
        _show(out_to, folder, report(folder), verbose)


def refuse_both(quiet: bool, verbose: bool) -> None:
    """Raises: ConfigError."""
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose were both given; expected one of them, or neither")


def disable_verification(recipe: Any) -> Any:
    """The recipe with verify = false for its base model, where it has one."""
    if not hasattr(recipe.model, "base"):
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"verify": False})})


def parse_waivers(texts: list[str]) -> dict[str, str]:
    """["C15=one document"] -> {"C15": "one document"}. Raises: ConfigError where the reason is missing."""
    waivers = {}
    for text in texts:
        check, _, reason = text.partition("=")
        if not reason.strip():
            raise ConfigError(f'--waive takes a check and a reason such as C15="one document", got {text!r}')
        waivers[check.strip()] = reason.strip()
    return waivers


def _show(console, folder: Path, written: list[Path], verbose: bool) -> None:
    """The result of the run, read back from its folder."""
    from kssm_mlx.cli.tables import checks_table, show, show_suite, table
    from kssm_mlx.reports.card import result_rows, sample_texts
    from kssm_mlx.reports.run import open_run

    run = open_run(folder)
    for stage, checks in run.checks.items():
        if verbose:
            show(console, checks_table(checks, f"checks, {stage}"))
        else:
            show_suite(console, checks, f"checks, {stage}")
    for label, text in sample_texts(run):
        console.print(f"\nsample, {label}\n", style="bold")
        console.print(printable(text), markup=False, soft_wrap=True)
    show(console, table(("result", ""), result_rows(run), str(folder)))
    console.print("written: " + "  ".join(str(path) for path in written), soft_wrap=True, markup=False)
