"""`kssm bench`: speed, memory and accuracy beside the peers, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def bench(
    out: Annotated[Path, typer.Option(help="Folder for <device>.json, .md and pictures.")] = Path(
        "benchmark"
    ),
    only: Annotated[
        str | None, typer.Option(help="Cases whose name contains this, such as mamba/train or ops.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Longer sequences, up to 65,536; takes hours.")
    ] = False,
    turns: Annotated[int, typer.Option(min=5, help="Turns per case, at most.")] = 7,
    together: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Under mlx.launch: what a step of this recipe sends among the processes, as JSON.",
        ),
    ] = None,
    names: Annotated[bool, typer.Option("--names", help="List the cases and stop.")] = False,
) -> None:
    """Measure ours beside mlx-lm, transformers and NumPy, as far as they are installed."""
    if together:
        return _show_together(together)
    from kssm_mlx.bench.run import bench as run
    from kssm_mlx.bench.suite import cases, sizes
    from kssm_mlx.cli.tables import console

    chosen = [case for case in cases(sizes(full)) if only is None or only in case.key]
    if names:
        typer.echo("\n".join(case.key for case in chosen))
        return
    screen = console()
    path = run(chosen, out, turns=turns, show=lambda record: screen.print(_table(record)))
    screen.print(f"written: {path} and {path.with_suffix('.md')}", markup=False, soft_wrap=True)


def _show_together(name: str) -> None:
    """Raises: ConfigError in a process that is alone, and for a recipe with a pretrained model."""
    import json
    import tempfile

    from kssm_mlx import models
    from kssm_mlx.bench.parallel import measure_link, measure_together, time_message
    from kssm_mlx.data.preparation.prepare import prepare
    from kssm_mlx.errors import ConfigError
    from kssm_mlx.runner.initial_model import configure_fresh
    from kssm_mlx.training.parallel.ranks import open_ranks
    from kssm_mlx.training.recipe import load

    recipe, ranks = load(name), open_ranks()
    if ranks.size == 1:
        raise ConfigError(
            f"there is one process; start some: mlx.launch -n 2 -- kssm bench --together {name}"
        )
    if hasattr(recipe.model, "base"):
        raise ConfigError(f"{name} trains a pretrained model; name a recipe with a fresh one")
    with tempfile.TemporaryDirectory(prefix="kssm-bench-") as folder:
        vocabulary = prepare(recipe.data, folder).vocab_size
    model = models.build(configure_fresh(recipe, vocabulary), seed=recipe.train.seed)
    found, link = measure_together(model, recipe.train, ranks), measure_link(ranks)
    alone = time_message(int(found.message) // 4, ranks)
    if ranks.first:
        about = {"share": found.share, "message_alone": alone, **link._asdict()}
        typer.echo(json.dumps({**found._asdict(), **about}))


def _table(record: dict[str, Any]):
    from kssm_mlx.bench.report import HEADER, rows
    from kssm_mlx.cli.tables import table

    return table(HEADER, rows(record), f"{record['key']}  {record['title']}")
