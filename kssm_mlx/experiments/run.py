"""A run from end to end: data, model, checks before the first step, training, checks of what came out.

    runs/NAME/  recipe.json  manifest.json  data/  metrics.jsonl  samples.jsonl  checkpoints/  checks.json

A run that cannot mean anything does not start: a failed pre-flight check stops it before step 1, by name.
`load` gives back a trained model; `verify` measures recipes, runs, weights and models of your own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console

from kssm_mlx.checks import suites
from kssm_mlx.checks.base import Check, Context
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.digest import root_digest, tensor_digest
from kssm_mlx.experiments.context import context_of, data_of_run
from kssm_mlx.experiments.examination import Examination
from kssm_mlx.experiments.folder import describe, host_of, is_run, locate, recipe_json, recipe_of
from kssm_mlx.experiments.hosts import open_model
from kssm_mlx.experiments.start import start_of_run, take
from kssm_mlx.experiments.targets import context_of_targets
from kssm_mlx.experiments.tracking import tracked
from kssm_mlx.generation import generate
from kssm_mlx.models.base import Trained
from kssm_mlx.models.calibration import Held
from kssm_mlx.training import checkpoint, lock
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.disk import writing
from kssm_mlx.training.freezing import holding
from kssm_mlx.training.loop import Hooks, Result, train_loop
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.regularisers import terms
from kssm_mlx.training.state import flatten

PROMPT_TOKENS = 16  # of held-out text, where a recipe gives no prompt and the tokenizer no separator


def train(
    recipe: Recipe | str | Path,
    folder: str | Path,
    *,
    resume: bool = False,
    allow_config_change: bool = False,
    waivers: dict[str, str] | None = None,
    verify: bool = True,
    track: str | None = None,
    console: Console | None = None,
) -> Result:
    """Train as the recipe says into the run folder `folder`, verified before, at every evaluation and after.

    waivers: id of a check -> why its failure is acceptable, beside those of the recipe; recorded in
    manifest.json and checks.json. verify: False lets failed checks pass and says what they would have
    stopped. track: a project of trackio's that is sent every row.
    Raises: CheckFailed naming every failed check (exit code 1); ConfigError, DataError, CheckpointError for
    input that cannot be used (2); Interrupted after a signal, with a checkpoint written.
    """
    recipe = recipes.load(recipe) if isinstance(recipe, (str, Path)) else recipe
    folder, console = Path(folder), console or Console(highlight=False)
    waivers = {**recipe.waive, **(waivers or {})}
    suites.accept(waivers)  # a waiver of an unknown check is refused before anything is written
    with writing("the run", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock.hold(folder):
        data = data_of_run(recipe, folder, resume, allow_config_change)
        context = context_of(recipe, folder, data, host_of(folder) if resume else None)
        describe(folder, recipe, context, waivers, verify=verify)
        console.print(f"{_summary(context)}\nchecking data and model before step 1", soft_wrap=True)
        terms(recipe.loss, context.model.args.vocab_size)  # refuses what no check should have to meet
        held = holding(recipe, context.model)
        for line in (*(held.intervention.describe() if held.intervention else ()), *held.warnings):
            console.print(line, soft_wrap=True, markup=False)
        examination = Examination(context, waivers, verify, console)
        examination.before()
        with tracked(track, folder, recipe, resume=resume) as log:
            result = train_loop(
                context.model,
                recipe,
                context.data,
                folder,
                resume=resume,
                allow_config_change=allow_config_change,
                hooks=Hooks(
                    sample=partial(_samples, context=context),
                    on_step=log,
                    on_eval=lambda step, state, row: (log(step, row), examination.during(step, state)),
                ),
                console=console,
                masks=held.masks or None,
                intervention=held.intervention,
            )
        console.print("checking what came out", soft_wrap=True)
        examination.after()
    return result


def load(path: str | Path, *, verify: bool = True, dtype: mx.Dtype | None = None) -> Trained:
    """A model ready to use: of a run folder (its best checkpoint) or one checkpoint folder, of any folder or
    file with weights, or of a repository on the hub.

    Everything is verified and evaluated, nothing is read later: a run against its checkpoint's manifest,
    its host by the verdict of `kssm verify-weights`, other weights by L0 to L3. verify: False takes a host or
    other weights as they are, and says so in the notes. dtype: of other weights, see `open_model`.
    Raises: CheckpointError, WeightMismatch, ConfigError for what is missing, damaged or not a model.
    """
    located = locate(Path(path))
    if located is None:
        return open_model(path, verify=verify, dtype=dtype)
    folder, chosen = located
    recipe, data = recipe_of(folder), TokenData.open(folder / "data")
    began = start_of_run(recipe, data, recipe_json(folder), verify=verify)
    snapshot = checkpoint.load(chosen, stems=[recipe.model.trained_file])
    trained = snapshot.tensors[recipe.model.trained_file]
    take(began.model, trained)
    digests = {name: tensor_digest(array) for name, array in trained.items()}
    digest = root_digest({**digests, **({"host": began.host} if began.host else {})})
    notes = {**began.host_notes, "step": snapshot.step}
    held = holding(recipe, began.model).intervention
    model = Held(began.model, held) if held else began.model
    return Trained(model, data.tokenizer, str(chosen), digest, notes)


def verify(
    *targets: str | Path,
    only: Iterable[str] | None = None,
    level: str | None = None,
    model: str | None = None,
    untrained: bool = False,
) -> list[Check]:
    """The checks of a recipe, a run folder or weights, or of run folders that a claim compares, measured now.

    only: ids of checks. level: one of `checks.base.LEVELS`; by default P, of a run P, S and R, of several G.
    model: `module:callable`, a model of your own, alone or in place of the recipe's. untrained: look for what
    was learned also where nothing was. The recipe's waivers hold. The verdicts are written into the
    checks.json of the runs, under "verify", or "claim" for several.
    """
    context = replace(context_of_targets(targets, model), untrained=untrained)
    waivers = context.recipe.waive if context.recipe else {}
    suites.accept(waivers)
    looked_at = [*(context.runs or [context]), *(context.baseline or ())]
    runs = [of.run_folder for of in looked_at if of.run_folder and is_run(of.run_folder)]
    levels = [level] if level else ["G"] if context.runs else ["P", "S", "R"] if runs else ["P"]
    ids = list(only or ()) or dict.fromkeys(id for one in levels for id in suites.suite(one))
    found = suites.run_suite(context, ids, waivers)
    for folder in runs:
        suites.write_checks(folder, "claim" if context.runs else "verify", found)
    return found


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


def _summary(context: Context) -> str:
    """One line on what is about to be trained on what."""
    trained = sum(array.size for array in context.initial.values())
    size = sum(array.size for array in flatten(context.model.parameters()).values())
    adapters = f", {trained:,} of them trained" if trained < size else ""
    splits = context.data.index["splits"]
    return (
        f"{context.config.model_type}, {size:,} parameters{adapters}; "
        f"{context.data.index['corpus']['name']}, {splits['train']['tokens']:,} tokens to train on, "
        f"{splits['validation']['tokens']:,} held out, vocabulary {context.data.vocab_size}"
    )
