"""`kssm`: one file per command, each of which parses, calls and prints.

What is slow to import (mlx, scipy, matplotlib, pydantic) is imported inside the commands, so that help is
instant. Every error made on purpose becomes one line on stderr and its exit code, here and nowhere else.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from kssm_mlx.cli.bench import bench
from kssm_mlx.cli.convert import convert
from kssm_mlx.cli.data import data
from kssm_mlx.cli.doctor import doctor
from kssm_mlx.cli.estimate import estimate
from kssm_mlx.cli.evaluate import evaluate
from kssm_mlx.cli.experiments.experiment import experiment
from kssm_mlx.cli.experiments.intervene import intervene
from kssm_mlx.cli.experiments.sweep import sweep
from kssm_mlx.cli.export import export
from kssm_mlx.cli.generate import generate
from kssm_mlx.cli.live.chat import chat
from kssm_mlx.cli.live.sync import sync
from kssm_mlx.cli.live.watch import watch
from kssm_mlx.cli.recipes import config, recipes
from kssm_mlx.cli.report import report
from kssm_mlx.cli.simulate import simulate
from kssm_mlx.cli.train import train
from kssm_mlx.cli.verify import verify
from kssm_mlx.cli.verify_weights import verify_weights
from kssm_mlx.errors import ConfigError, KssmError
from kssm_mlx.terminal import prepare_streams, printable

# What a disk does to us without naming a file: no space, no permission, read-only, over quota.
DISK = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT)

# By command, the options that say how another one is done: without it they would do nothing.
NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {"--resume": ("allow_config_change",)},
    "eval": {"--tasks NAME": ("task_files", "limit")},
    "generate": {
        "--trace FILE.jsonl": ("trace_values", "trace_units"),
        "--temperature above 0": ("top_k", "top_p", "min_p", "seed"),
        "--repetition-penalty 1.2": ("repetition_window",),
        "--hold R=0.5": ("carried",),
    },
}
# By command, the options that would do nothing beside another one.
IDLE: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {"--dry-run": ("track", "verbose", "quiet")},
    "eval": {"--tasks": ("data", "tokens")},
    "verify": {
        "--explain": ("targets", "only", "level", "model", "untrained", "as_json", "verbose", "quiet"),
        "--json": ("verbose", "quiet"),
    },
    "verify-weights": {"--headers-only": ("quick", "manifest", "write_manifest", "text")},
    "watch": {"--once": ("every",)},
    "sweep": {"--trials": ("seeds", "jobs")},
    "bench": {"--together": ("out", "only", "full", "turns", "names"), "--names": ("out", "turns")},
}

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


class Command(TyperCommand):
    """Refuses options that would do nothing."""

    def invoke(self, ctx):
        words = {each.name: _name_option(each) for each in self.params}
        given = {words[name]: value for name, value in ctx.params.items() if _is_given(ctx, name)}
        for other, names in NEEDS.get(self.name or "", {}).items():
            if not given.get(other.split()[0]):
                _refuse_idle(given, (words[n] for n in names), f"without {other}; add that, or leave it out")
        for other, names in IDLE.get(self.name or "", {}).items():
            if other in given:
                _refuse_idle(given, (words[n] for n in names), f"beside {other}; leave one of them out")
        return super().invoke(ctx)


def _name_option(parameter: Any) -> str:
    """Its longest name as it is typed; of an argument what stands for it in the help."""
    names = [name for name in parameter.opts if name.startswith("-")]
    return max(names, key=len, default=parameter.name.upper())


def _is_given(ctx: Any, name: str) -> bool:
    """Whether the command line has it, and not only its default."""
    return getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _refuse_idle(given: Iterable[str], options: Iterable[str], why: str) -> None:
    """Raises: ConfigError for the first of the options that was given."""
    if idle := [option for option in options if option in given]:
        raise ConfigError(f"{idle[0]} does nothing {why}")


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
    app.command(cls=Command)(command)
app.add_typer(data, name="data")
app.add_typer(experiment, name="experiment")
app.command("eval", cls=Command)(evaluate)
app.command("verify-weights", cls=Command)(verify_weights)
