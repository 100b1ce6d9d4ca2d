"""A run from end to end: data, model, checks before the first step, training, checks of what came out.

    runs/NAME/  recipe.json  manifest.json  data/  metrics.jsonl  samples.jsonl  checkpoints/  checks.json

A run that cannot mean anything does not start: a failed pre-flight check stops it before step 1, by name.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console

from kssm_mlx.checks.core.registry import Context, require_value
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import ConfigError, DataError
from kssm_mlx.generation import generate
from kssm_mlx.models.base import sizes_of
from kssm_mlx.runner.base_models import ensure_base_model
from kssm_mlx.runner.estimate import announce, refuse_fresh_model
from kssm_mlx.runner.folder import read_base_digest, write_description
from kssm_mlx.runner.prepare import prepare_context, prepare_data, require_known_names
from kssm_mlx.runner.run_checks import RunChecks
from kssm_mlx.runner.tracking import open_tracker, require_tracker
from kssm_mlx.runs import layout, lock
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.constraints import build_constraints
from kssm_mlx.training.loop import Callbacks, Result, refuse_second_run, train_loop
from kssm_mlx.training.loss_terms import parse_terms
from kssm_mlx.training.parallel.ranks import ALONE, Ranks
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import TrainState
from kssm_mlx.training.step import require_shares

PROMPT_TOKENS = 16  # of held-out text, where a recipe gives no prompt and the tokenizer no separator


def train(
    recipe: Recipe | str | Path,
    folder: str | Path | None = None,
    *,
    steps: int | None = None,
    settings: dict[str, Any] | None = None,
    smoke: bool = False,
    resume: bool = False,
    allow_config_change: bool = False,
    waivers: dict[str, str] | None = None,
    verify: bool = True,
    track: str | None = None,
    console: Console | None = None,
    ranks: Ranks = ALONE,
) -> Result:
    """Train as the recipe says into the run folder `folder`, verified before, at every evaluation and after.

    recipe: a shipped name, a TOML file, or what `training.recipe.load` made of one. folder: runs/NAME of a
    name unless given. settings: of a name or file, by dotted keys such as {"model.kappa": 0.0}; steps is
    {"train.steps": steps}. smoke: its smoke form. waivers: id of a check -> why its failure is acceptable,
    beside those of the recipe; recorded in manifest.json and checks.json. verify: False lets failed checks
    pass and says what they would have stopped. track: a project of trackio's that is sent every row, or
    "wandb:PROJECT". ranks: the processes that train this together; rank 0 alone checks, says and writes.
    Raises: CheckFailed naming every failed check (exit code 1); ConfigError, DataError, CheckpointError for
    input that cannot be used (2); Interrupted after a signal, with a checkpoint written.
    """
    folder = _run_folder(recipe, folder)
    recipe = _load(recipe, {**(settings or {}), **({} if steps is None else {"train.steps": steps})}, smoke)
    console = (console or Console(highlight=False)) if ranks.first else Console(quiet=True)
    waivers = {**recipe.waive, **(waivers or {})}

    def begin() -> Context:
        """Of rank 0, or of one process."""
        require_tracker(track)
        require_known_names(recipe, waivers)
        # Held until the last check: two processes in one folder would mix their rows and checkpoints.
        held.enter_context(lock.hold(folder))
        if not resume:
            refuse_second_run(folder)
        ensure_base_model(recipe.model, train)
        data = prepare_data(recipe, folder, resume, allow_config_change)
        refuse_fresh_model(recipe, data, folder)
        context = prepare_context(recipe, folder, data, read_base_digest(folder) if resume else None)
        require_shares(context.model, recipe.train, ranks)
        write_description(folder, recipe, context, waivers, verify=verify)
        parse_terms(recipe.loss, context.model.args.vocab_size)  # refuses what no check should have to meet
        lines = (_summary(context), *_warn_of_warmup(recipe.train), *announce(context, folder))
        for line in (*lines, "checking data and model before step 1"):
            console.print(line, soft_wrap=True, markup=False)
        return context

    with ranks.explain_lost_rank(partial(_describe_saved, folder)), contextlib.ExitStack() as held:
        with ranks.end_together():
            began = begin() if ranks.first else None
        # Digests, since a text of the same name may be another on another machine.
        files = ranks.gather(began and began.data.index["files"])[0]
        with ranks.end_together():
            context = began or _follow(recipe, folder, files)
        constraints = build_constraints(recipe, context.model)
        said = constraints.intervention.describe() if constraints.intervention else ()
        for line in (*said, *constraints.warnings):
            console.print(line, soft_wrap=True, markup=False)
        examination = RunChecks(context, waivers, verify, console)
        with ranks.end_together():
            if ranks.first:
                # Once: all ranks begin with the same parameters, and would come to the same verdict.
                examination.before()
        with open_tracker(track if ranks.first else None, folder, recipe, resume=resume) as log:

            def on_eval(step: int, state: TrainState, row: dict[str, Any]) -> None:
                log(step, row)
                examination.during(step, state)

            result = train_loop(
                context.model,
                recipe,
                context.data,
                folder,
                resume=resume,
                allow_config_change=allow_config_change,
                hooks=Callbacks(
                    sample=partial(_samples, context=context),
                    on_step=log,
                    on_eval=on_eval,
                ),
                console=console,
                masks=constraints.masks or None,
                intervention=constraints.intervention,
                ranks=ranks,
            )
        console.print("checking what came out", soft_wrap=True)
        with ranks.end_together():
            if ranks.first:
                examination.after()
    return result


def _run_folder(recipe: Recipe | str | Path, folder: str | Path | None) -> Path:
    if folder is not None:
        return Path(folder)
    if isinstance(recipe, (str, Path)):
        return Path("runs") / Path(recipe).stem
    raise ConfigError('a recipe made in Python has no name: say where to, as in train(recipe, "runs/mine")')


def _load(recipe: Recipe | str | Path, settings: dict[str, Any], smoke: bool) -> Recipe:
    if isinstance(recipe, (str, Path)):
        return recipes.load(recipe, settings, smoke=smoke)
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"train takes a recipe, the name of one or a TOML file, got {type(recipe).__name__}; "
            "kssm recipes lists those that are shipped"
        )
    if settings or smoke:
        raise ConfigError(
            "settings, steps and smoke are of a recipe by name or file; of one that was made in Python: "
            "training.recipe.load(name, settings, smoke=True)"
        )
    return recipe


def _follow(recipe: Recipe, folder: Path, files: dict[str, Any]) -> Context:
    """Data and model of a rank other than 0: its token files if this machine sees them, else its own.

    files: digests of rank 0's. Raises: ConfigError, DataError for what this machine does not have.
    """
    ensure_base_model(recipe.model, train)
    with contextlib.suppress(DataError):
        data = TokenData.open(folder / "data")
        if data.index["files"] == files:
            return prepare_context(recipe, folder, data)
    return prepare_context(recipe, folder, prepare(recipe.data, folder / "data"))


def _describe_saved(folder: Path) -> str:
    """What there is to go on from."""
    saved = layout.list_checkpoints(folder / layout.CHECKPOINTS)
    if not saved:
        return f"{folder} has no checkpoint yet: start it again"
    return f"the last checkpoint is of step {max(saved)}; start all of them again with --resume"


def _samples(model, key: mx.array, context: Context) -> list[dict[str, Any]]:
    """Continuations of the recipe's prompt, greedy and drawn; the seed is fixed so that they compare.

    Without a prompt a text starts as a new document; where the tokenizer cannot say so, as the held-out text.
    """
    recipe = context.recipe
    if not recipe.eval.sample_tokens:
        return []
    prompt = recipe.eval.prompt
    if not prompt and context.tokenizer.separator_id is None:
        prompt = context.tokenizer.decode(context.data.validation.ids[:PROMPT_TOKENS])
    samples = []
    for temperature in (0.0, recipe.eval.temperature):
        (completion,) = generate(
            model,
            context.tokenizer,
            prompt,
            max_tokens=recipe.eval.sample_tokens,
            temperature=temperature,
            seed=recipe.train.seed,
        )
        samples.append({"prompt": prompt, "text": completion.text, "temperature": temperature})
    return samples


def _warn_of_warmup(train: Train) -> list[str]:
    """A run that is cut short by its steps alone hardly leaves the warm-up, and learns as slowly."""
    if 2 * train.warmup <= train.steps:
        return []
    return [
        f"warning: the learning rate rises for {train.warmup} of {train.steps} steps (train.warmup); "
        "lower it, or what is learned says little"
    ]


def _summary(context: Context) -> str:
    """One line on what is about to be trained on what."""
    trained = sum(array.size for array in require_value(context.initial, "initial").values())
    size = sum(sizes_of(context.model).values())
    adapters = f", {trained:,} of them trained" if trained < size else ""
    splits = context.data.index["splits"]
    return (
        f"{context.config.model_type}, {size:,} parameters{adapters}; "
        f"{context.data.index['corpus']['name']}, {splits['train']['tokens']:,} tokens to train on, "
        f"{splits['validation']['tokens']:,} held out, vocabulary {context.data.vocab_size}"
    )
