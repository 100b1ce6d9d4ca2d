"""`kssm`: one file per command, each of which parses, calls and prints.

What is slow to import (mlx, scipy, matplotlib, pydantic) is imported inside the commands, so that help is
instant. Every error made on purpose becomes one line on stderr and its exit code, here and nowhere else.
"""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kssm_mlx.cli.bench import bench
from kssm_mlx.cli.convert import convert
from kssm_mlx.cli.data import data
from kssm_mlx.cli.doctor import doctor
from kssm_mlx.cli.estimate import estimate
from kssm_mlx.cli.evaluate import evaluate
from kssm_mlx.cli.experiment import experiment
from kssm_mlx.cli.export import export
from kssm_mlx.cli.generate import generate
from kssm_mlx.cli.intervene import intervene
from kssm_mlx.cli.live.chat import chat
from kssm_mlx.cli.live.sync import sync
from kssm_mlx.cli.live.watch import watch
from kssm_mlx.cli.recipes import config, recipes
from kssm_mlx.cli.report import report
from kssm_mlx.cli.simulate import simulate
from kssm_mlx.cli.sweep import sweep
from kssm_mlx.cli.train import train
from kssm_mlx.cli.verify import verify
from kssm_mlx.cli.verify_weights import verify_weights
from kssm_mlx.errors import KssmError
from kssm_mlx.terminal import prepare_streams, printable

# What a disk does to us without naming a file: no space, no permission, read-only, over quota.
DISK = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT)

# A command line that cannot be parsed; typer exports only its kinds.
UsageError: Any = typer.BadParameter.__base__


class Commands(TyperGroup):
    """Turns what a command raises into one line and an exit code; the rest is bugs, with their traceback."""

    def invoke(self, ctx):
        prepare_streams()
        try:
            return super().invoke(ctx)
        except KssmError as e:
            raise _end_with_message(str(e), e.exit_code) from None
        except UsageError as e:
            command = e.ctx.command_path if e.ctx else "kssm"
            message = e.format_message()
            raise _end_with_message(
                f"{message[:1].lower()}{message[1:].rstrip('.')}; see {command} --help", 2
            ) from None
        except KeyboardInterrupt:
            raise _end_with_message("interrupted", 130) from None
        except OSError as e:
            if not e.strerror or not (e.filename or e.errno in DISK):
                raise
            raise _end_with_message(f"{e.filename or 'writing'}: {e.strerror.lower()}", 2) from None


def _end_with_message(message: str, code: int) -> typer.Exit:
    typer.echo(f"kssm: {printable(' '.join(message.split()))}", err=True)
    return typer.Exit(code)


# Plain help: rich would double the time it takes to show it.
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from kssm_mlx import __version__

        typer.echo(f"kssm-mlx {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Language models with oscillators in them, on MLX: trained, verified before and after, looked at."""


for command in (
    train,
    estimate,
    watch,
    sweep,
    verify,
    generate,
    chat,
    intervene,
    report,
    export,
    convert,
    sync,
    simulate,
    recipes,
    config,
    doctor,
    bench,
):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(experiment, name="experiment")
app.command("eval")(evaluate)
app.command("verify-weights")(verify_weights)
