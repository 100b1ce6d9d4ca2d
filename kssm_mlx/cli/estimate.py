"""`kssm estimate`: what a run needs, before it is begun."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from kssm_mlx.cli.arguments import Overrides, complete_recipe
from kssm_mlx.errors import ConfigError


def estimate(
    target: Annotated[
        str,
        typer.Argument(
            help="A recipe, a TOML file, a run folder, or weights (a path or a repository).",
            autocompletion=complete_recipe,
        ),
    ],
    set_: Overrides = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe's [smoke] form.")] = False,
    machine: Annotated[
        str | None,
        typer.Option(metavar='"M2 Ultra 64"', help="Compare with the published figures of this Mac."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(help="Take steps with few rows, for peak and time (default). --no-measure: sums alone."),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Bytes and seconds as JSON.")] = False,
) -> None:
    """What training a recipe needs: parameters, memory, disk, FLOPs, time.

    Weights, optimizer and gradients are summed. The peak and the time come from steps with 1, 2, 4, ... rows
    that are taken now, and from one with all rows where the line through these says that it is safe. Of
    weights it says what they take, and the state of a row.
    """
    from kssm_mlx.runner.estimate import estimate as run
    from kssm_mlx.runner.estimate import to_json
    from kssm_mlx.training.budget.machines import find_machine

    named = find_machine(machine) if machine else None
    found = run(target, recipe=_recipe_of(target, set_ or [], smoke), measure=measure)
    if as_json:
        typer.echo(json.dumps(to_json(found), indent=1))
        return
    _show(found, named, Path())


def show_dry_run(name: str, recipe: Any, folder: Path, waivers: dict[str, str]) -> None:
    """The recipe, every key as `--set` takes it, and its estimate.

    Raises: ConfigError for what kssm train would refuse: a name that there is not, or, after it was shown,
        what does not fit.
    """
    from kssm_mlx.runner.estimate import estimate as run
    from kssm_mlx.runner.prepare import require_known_names
    from kssm_mlx.training.budget import fit
    from kssm_mlx.training.checkpoints.identity import flatten_keys

    require_known_names(recipe, {**recipe.waive, **waivers})
    # As --set takes them, so that a line can be pasted and changed.
    for key, value in flatten_keys(recipe.model_dump(exclude_none=True)).items():
        typer.echo(f"{key}={json.dumps(value, ensure_ascii=False)}")
    found = run(name, recipe=recipe)
    _show(found, None, folder)
    fit.refuse_beyond_memory(found.sums, recipe, fit.there_is_memory())
    fit.refuse_beyond_disk(found.sums, recipe, fit.there_is_disk(folder))
    typer.echo(f"nothing was started; the run would be written to {folder}")


def _recipe_of(target: str, settings: list[str], smoke: bool) -> Any:
    """The recipe with its changes; None where nothing is changed, of weights always."""
    if not settings and not smoke:
        return None
    from kssm_mlx.runner.folder import read_run_recipe
    from kssm_mlx.runner.targets import kind_of_target
    from kssm_mlx.training.recipe import load, override, parse_override

    changes, kind = dict(parse_override(text) for text in settings), kind_of_target(target)
    if kind == "weights":
        raise ConfigError(f"{target} is no recipe; --set and --smoke change one")
    if kind == "recipe":
        return load(target, changes, smoke=smoke)
    if smoke:
        raise ConfigError(f"{target} is a run, which has no smoke form; take its recipe")
    return override(read_run_recipe(Path(target).expanduser()), changes)


def _show(found: Any, machine: Any, folder: Path) -> None:
    from kssm_mlx.cli.tables import console, show, table
    from kssm_mlx.training.budget.machines import SOURCE

    screen = console()
    title = f"estimate of {found.name}, {found.family}"
    show(screen, table(("what", "", "how"), [*_sizes(found), *_training(found)], title))
    rows = _on_paper(found, machine) if machine else _estimate_here(found, folder)
    show(screen, table(("machine", ""), rows, f"{machine.name}, {SOURCE}" if machine else "this machine"))


def _sizes(found: Any) -> Iterator[tuple[str, str, str]]:
    from kssm_mlx.training.budget.fit import show_bytes

    sums, state = found.sums, found.state
    if found.recipe:
        yield "parameters, trained", f"{sums.trained:,}", "counted"
        yield "parameters, frozen", f"{sums.frozen:,}", "counted"
    else:
        yield "parameters", f"{sums.trained + sums.frozen:,}", "counted"
    yield "weights", show_bytes(sums.weights), "summed"
    growth = f", and {show_bytes(state.growth)} with each further token" if state.growth else ""
    yield "state of a row", f"{show_bytes(state.first)}{growth}", "summed"
    doing = "a training step" if found.recipe else "a forward pass"
    yield "FLOPs per token", f"{found.flops:.3g}", f"products with matrices in {doing}"


def _training(found: Any) -> Iterator[tuple[str, str, str]]:
    from kssm_mlx.runner.estimate import show_seconds
    from kssm_mlx.training.budget.fit import show_bytes

    if found.recipe is None:
        return
    train, sums, step = found.recipe.train, found.sums, found.step
    tokens, (low, high) = train.batch_size * train.context, map(show_bytes, found.checkpoints)
    yield "optimizer", show_bytes(sums.optimizer), "summed"
    yield "gradients", show_bytes(sums.gradients), "summed"
    yield "checkpoints on disk", f"{low} to {high}", f"save.keep={found.recipe.save.keep}"
    flops = f"{found.flops * tokens * train.steps:.3g}"
    yield "FLOPs of the run", flops, f"{train.steps} x {tokens:,} tokens"
    if step is None:
        yield "activations, peak, time", "not measured", "needs a step on this machine"
        return
    how = f"steps with {', '.join(f'{cost.rows:g}' for cost in found.costs)} of {step.rows:g} rows"
    yield "activations and the rest", show_bytes(found.activations), "the peak less the sums"
    yield "peak of memory", show_bytes(step.peak), how
    yield "seconds per step", f"{step.seconds:.3g}", "the same steps, here"
    yield "time of all steps", show_seconds(step.seconds * train.steps), "evaluations and checks beside"


def _estimate_here(found: Any, folder: Path) -> Iterator[tuple[str, str]]:
    from kssm_mlx.training.budget import fit

    memory, disk = fit.there_is_memory(), fit.there_is_disk(folder)
    yield "memory that MLX takes", _share(found, memory)
    yield "free on disk", fit.show_bytes(disk)
    yield from (("note", line) for line in _verdicts(found, memory, disk))


def _verdicts(found: Any, memory: int, disk: int) -> Iterator[str]:
    """What kssm train would refuse or warn of."""
    from kssm_mlx.training.budget import fit

    if found.recipe is None:
        return
    for refuse, there in ((fit.refuse_beyond_memory, memory), (fit.refuse_beyond_disk, disk)):
        try:
            refuse(found.sums, found.recipe, there)
        except ConfigError as e:
            yield str(e)
    if found.costs:
        yield (
            fit.warn_beyond_memory(found.sums, found.recipe, found.costs, memory, found.recomputes)
            or "the predicted peak fits"
        )


def _share(found: Any, memory: int) -> str:
    """The memory, and what part of it is taken."""
    from kssm_mlx.training.budget.fit import show_bytes

    step, sums = found.step, found.sums
    if found.recipe is None:
        return f"{show_bytes(memory)}; the weights take {sums.weights / memory:.1%}"
    if step is None:
        return f"{show_bytes(memory)}; weights, optimizer and gradients take {sums.least / memory:.1%}"
    return f"{show_bytes(memory)}; the predicted peak takes {step.peak / memory:.1%}"


def _on_paper(found: Any, machine: Any) -> Iterator[tuple[str, str]]:
    from kssm_mlx.training.budget.machines import least_step_seconds, most_tokens_per_second

    sums = found.sums
    yield "memory", f"{_share(found, machine.memory)}; macOS gives the GPU only a part"
    yield "bandwidth", f"{machine.bandwidth / 1e9:g} GB/s"
    speed = most_tokens_per_second(machine, sums.weights, found.state.first)
    yield "tokens one by one", f"at most {speed:,.4g} a second of one row, by bandwidth alone"
    if found.recipe:
        least = least_step_seconds(machine, sums.weights, sums.trained, sums.optimizer)
        yield "a training step", f"at least {least * 1e3:.3g} ms, by bandwidth, without activations"
    if found.recipe and found.costs:
        # Of a named machine nothing is known about its disk.
        yield from (("note", line) for line in _verdicts(found, machine.memory, 2**62))
