"""`kssm experiment`: a question, its arms and seeds, and what the results say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kssm_mlx.cli.arguments import Overrides, complete_experiment
from kssm_mlx.errors import ConfigError

experiment = typer.Typer(
    no_args_is_help=True,
    help="Ask a question: arms, seeds, a rule that decides, fixed before the first run.",
)
Named = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="A shipped experiment, or a TOML file.",
        autocompletion=complete_experiment,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="The experiment's folder.  [default: experiments/NAME, NAME-smoke]")
]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Tiny runs that show that it works, and decide nothing.")
]


@experiment.command()
def run(
    name: Named,
    out: Out = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Runs at a time.")] = 2,
    only: Annotated[list[str] | None, typer.Option(metavar="ARM", help="Only this arm, or these.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Only the first so many seeds.")] = None,
    settings: Overrides = None,
    smoke: Smoke = False,
) -> None:
    """Do all runs that are not done yet, and say what they decide.

    A run that was cut off goes on where it was; one that its checks stopped is told, and the others go on.
    """
    from kssm_mlx.cli.live.experiment import watch_experiment
    from kssm_mlx.cli.tables import console
    from kssm_mlx.experiments.execute import Experiment

    design, text, title = _load(name, settings or [], smoke)
    folder = out or _default_folder(name, smoke)
    with watch_experiment(console(), design, folder) as watch:
        Experiment(folder, design, title, text, smoke=smoke, workers=jobs).run(
            watch, only=only or [], seeds=seeds
        )
    report(folder, None)


@experiment.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The experiment's folder.")],
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Runs at a time.")] = 2,
) -> None:
    """Go on with an experiment as it began."""
    from kssm_mlx.cli.live.experiment import watch_experiment
    from kssm_mlx.cli.tables import console
    from kssm_mlx.experiments.execute import Experiment, design_of
    from kssm_mlx.runs.experiment import read_results

    results = read_results(_require(folder))
    last, design = results.designs[-1], design_of(results)
    with watch_experiment(console(), design, folder) as watch:
        began = Experiment(folder, design, last["name"], last["file"], bool(last.get("smoke")), jobs)
        began.run(watch)
    report(folder, None)


@experiment.command()
def status(folder: Annotated[Path, typer.Argument(help="The experiment's folder.")]) -> None:
    """How far each arm and seed is."""
    from kssm_mlx.cli.live.experiment import show_status
    from kssm_mlx.cli.tables import console

    show_status(console(), _require(folder))


@experiment.command()
def report(
    results: Annotated[Path, typer.Argument(help="The experiment's folder, or a results.jsonl.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the pages go.  [default: beside the results]")
    ] = None,
) -> None:
    """Write the report, from results.jsonl alone: Markdown, pictures and one HTML page."""
    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.experiments.summary import summarize
    from kssm_mlx.reports.experiment import verdict_rows, write_report

    summary = summarize(_require(results))
    written = write_report(summary, out or (results if results.is_dir() else results.parent))
    screen = console()
    show(screen, table(("arm", "runs", summary.metric, "95 %"), summary.arm_rows(), summary.name))
    for line in verdict_rows(summary):
        screen.print(line, soft_wrap=True, markup=False)
    screen.print("written: " + "  ".join(map(str, written)), soft_wrap=True, markup=False)


@experiment.command("list")
def list_() -> None:
    """The experiments that come with the package."""
    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.experiments.design import list_experiments, load_design

    designs = {name: load_design(name)[0] for name in list_experiments()}
    rows = [
        (name, d.about.question, f"{d.about.minutes:g}" if d.about.minutes else "")
        for name, d in designs.items()
    ]
    show(console(), table(("experiment", "question", "minutes"), rows, "kssm experiment run NAME"))


@experiment.command()
def new(
    file: Annotated[Path, typer.Argument(help="The TOML file to write.")],
) -> None:
    """Write a commented file to begin with; it runs as it is."""
    from kssm_mlx import files
    from kssm_mlx.experiments.template import TEMPLATE

    if file.exists():
        raise ConfigError(f"{file} exists; choose another name")
    files.replace(file, TEMPLATE)
    typer.echo(f"{file}: edit it, then kssm experiment run {file} --smoke")


def _load(name: str, settings: list[str], smoke: bool):
    from kssm_mlx.experiments.design import load_design, make_smoke
    from kssm_mlx.training.recipe import parse_override

    design, text = load_design(name, dict(map(parse_override, settings)))
    return (make_smoke(design) if smoke else design), text, Path(name).stem


def _default_folder(name: str, smoke: bool) -> Path:
    return Path("experiments") / f"{Path(name).stem}{'-smoke' if smoke else ''}"


def _require(folder: Path) -> Path:
    from kssm_mlx.runs.experiment import is_experiment

    if not is_experiment(folder):
        raise ConfigError(
            f"{folder} is no experiment: it has no results.jsonl; kssm experiment run makes one"
        )
    return folder
