"""`kssm sync`: a run to another machine, and back."""

from __future__ import annotations

from typing import Annotated

import typer


def sync(
    source: Annotated[str, typer.Argument(metavar="RUN|HOST:RUN", help="The run folder to copy.")],
    target: Annotated[
        str, typer.Argument(metavar="HOST:RUN|RUN", help="The run folder that it becomes, new or older.")
    ],
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
) -> None:
    """Copy a run to another place, or back, through the system's rsync and ssh.

    Checkpoints arrive whole or not at all and are compared with their manifest there. What is there already
    is not copied again; a copy that broke off goes on. A target that is ahead or another run is refused.
    """
    from kssm_mlx.runner.sync import sync as run
    from kssm_mlx.runs.remote import parse_place

    say = (lambda text: None) if quiet else typer.echo
    there = parse_place(target)
    copied = run(parse_place(source), there, say)
    say(f"{there}: {len(copied)} checkpoints copied and verified" if copied else f"{there}: up to date")
