"""A run from end to end: data, model, checks before the first step, training, checks of what came out.

    runs/NAME/  recipe.json  manifest.json  data/  metrics.jsonl  samples.jsonl  checkpoints/  checks.json

A run that cannot mean anything does not start: a failed pre-flight check stops it before step 1, by name.
`load` gives back a trained model, `verify` measures a recipe or a run again.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console

from kssm_mlx import environment, files, models
from kssm_mlx.checks.base import Check, Context, apply_waivers, require
from kssm_mlx.checks.suites import run_suite, write_checks
from kssm_mlx.checks.weights import host_verdict
from kssm_mlx.data.batches import evaluation_windows, random_batch, track_batch
from kssm_mlx.data.tokens import TokenData, prepare
from kssm_mlx.digest import root_digest, tensor_digest
from kssm_mlx.errors import CheckpointError, ConfigError, DataError
from kssm_mlx.experiments.hosts import open_model
from kssm_mlx.experiments.start import Start, start, start_of_run, take
from kssm_mlx.experiments.tracking import tracked
from kssm_mlx.generation import generate
from kssm_mlx.models.base import Trained
from kssm_mlx.training import checkpoint, identity, lock
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.disk import writing
from kssm_mlx.training.loop import Hooks, Result, refuse_second_run, train_loop
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.state import flatten, from_arrays, initial_state

BESIDE_RECIPE = ("configuration", "host_digest")  # what recipe.json holds beside the recipe
PROMPT_TOKENS = 16  # of held-out text, where a recipe gives no prompt and the tokenizer no separator


def train(
    recipe: Recipe | str | Path,
    folder: str | Path,
    *,
    resume: bool = False,
    allow_config_change: bool = False,
    waivers: dict[str, str] | None = None,
    track: str | None = None,
    console: Console | None = None,
) -> Result:
    """Train as the recipe says into the run folder `folder`, verified before and after.

    waivers: id of a check -> why its failure is acceptable; recorded in checks.json. track: a project of
    trackio's that is sent every row.
    Raises: CheckFailed naming every failed check (exit code 1); ConfigError, DataError, CheckpointError for
    input that cannot be used (2); Interrupted after a signal, with a checkpoint written.
    """
    recipe = recipes.load(recipe) if isinstance(recipe, (str, Path)) else recipe
    folder, console = Path(folder), console or Console(highlight=False)
    apply_waivers((), waivers or {})  # a waiver of an unknown check is refused before anything is written
    with writing("the run", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock.hold(folder):
        data = _data(recipe, folder, resume, allow_config_change)
        context = _context(recipe, folder, data, _saved_host(folder) if resume else None)
        _describe(folder, recipe, context)
        console.print(f"{_summary(context)}\nchecking data and model before step 1", soft_wrap=True)
        _examine(context, "P", "preflight", waivers)
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
                    on_eval=lambda step, state, row: log(step, row),
                ),
                console=console,
            )
        console.print("checking what came out", soft_wrap=True)
        context.history = _rows(folder)
        _examine(context, "S", "final", waivers)
    return result


def load(path: str | Path, *, verify: bool = True, dtype: mx.Dtype | None = None) -> Trained:
    """A model ready to use: of a run folder (its best checkpoint) or one checkpoint folder, of any folder or
    file with weights, or of a repository on the hub.

    Everything is verified and evaluated, nothing is read later: a run against its checkpoint's manifest,
    its host by the verdict of `kssm verify-weights`, other weights by L0 to L3. verify: False takes a host or
    other weights as they are, and says so in the notes. dtype: of other weights, see `open_model`.
    Raises: CheckpointError, WeightMismatch, ConfigError for what is missing, damaged or not a model.
    """
    located = _locate(Path(path))
    if located is None:
        return open_model(path, verify=verify, dtype=dtype)
    folder, chosen = located
    recipe, data = _recipe_of(folder), TokenData.open(folder / "data")
    began = start_of_run(recipe, data, _recipe_json(folder), verify=verify)
    snapshot = checkpoint.load(chosen, stems=[recipe.model.trained_file])
    trained = snapshot.tensors[recipe.model.trained_file]
    take(began.model, trained)
    digests = {name: tensor_digest(array) for name, array in trained.items()}
    digest = root_digest({**digests, **({"host": began.host} if began.host else {})})
    notes = {**began.host_notes, "step": snapshot.step}
    return Trained(began.model, data.tokenizer, str(chosen), digest, notes)


def verify(target: str | Path, *, only: Iterable[str] | None = None, level: str | None = None) -> list[Check]:
    """The checks of a recipe (before any step) or of a run folder (before and after), measured now.

    only: ids of checks; level: "P" or "S"; by default P for a recipe, P and S for a run.
    A run's verdicts are written into its checks.json under "verify".
    """
    folder = Path(target)
    is_run = (folder / "recipe.json").is_file()
    context = _run_context(folder) if is_run else _recipe_context(target)
    wanted = list(only) if only else None
    levels = [level] if level else ["P", "S"] if is_run else ["P"]
    found = run_suite(context, wanted) if wanted else [c for one in levels for c in run_suite(context, one)]
    found = list({c.id: c for c in found}.values())
    if is_run:
        write_checks(folder, "verify", found)
    return found


def _data(recipe: Recipe, folder: Path, resume: bool, allow_change: bool) -> TokenData:
    """The token files of a run. What cannot begin or continue is refused before anything in `folder` changes.

    A run goes on with the ids it began with, whatever became of their source.
    """
    if not resume:
        refuse_second_run(folder)
        return prepare(recipe.data, folder / "data")
    kept = _kept_data(recipe, folder)
    if found := _changes(recipe, folder):
        if not allow_change:
            raise ConfigError(
                f"the recipe is not the one {folder} began with: {'; '.join(found)}; "
                "put it back, or pass --allow-config-change"
            )
        _rehearse(recipe, folder, kept)
    return kept or prepare(recipe.data, folder / "data")


def _changes(recipe: Recipe, folder: Path) -> list[str]:
    """One phrase per key of the recipe that is not as the run in `folder` has it."""
    if not (folder / "recipe.json").is_file():
        return []
    then = identity.dotted(_without(_recipe_json(folder), "about", *BESIDE_RECIPE))
    return identity.differences(then, identity.dotted(_without(recipe.model_dump(), "about")))


def _kept_data(recipe: Recipe, folder: Path) -> TokenData | None:
    """The run's own token files, if they are what the recipe asks for and can be opened."""
    described = (folder / "recipe.json").is_file()
    if not described or any(phrase.startswith("data.") for phrase in _changes(recipe, folder)):
        return None
    with contextlib.suppress(DataError):
        return TokenData.open(folder / "data")
    return None


def _rehearse(recipe: Recipe, folder: Path, kept: TokenData | None) -> None:
    """Raises: CheckpointError if the run's last checkpoint cannot go on under a changed recipe."""
    latest = checkpoint.load_latest(folder / "checkpoints")
    if latest is None:
        return
    saved = latest.snapshot
    with tempfile.TemporaryDirectory(prefix="kssm-resume-") as elsewhere:
        data = kept or prepare(recipe.data, elsewhere)
        model = start(recipe, data, host=_saved_host(folder)).model
        identity.changes(saved.state["identity"], identity.of(model, recipe, data), allow=True)
        trained = saved.tensors.get(recipe.model.trained_file, {})
        restored = from_arrays(trained, saved.tensors["optimizer"])
        identity.require_same_parameters(restored, initial_state(model, recipe.train))


def _context(recipe: Recipe, folder: Path, data: TokenData, host: str | None = None) -> Context:
    """Data and model before the first step; `host` is the digest that the run's host must have."""
    _refuse_unusable(data, recipe)
    return _starting(recipe, folder, data, start(recipe, data, host=host))


def _starting(recipe: Recipe, folder: Path, data: TokenData, began: Start) -> Context:
    return Context(
        model=began.model,
        config=began.model.args,
        recipe=recipe,
        data=data,
        tokenizer=data.tokenizer,
        initial=flatten(began.model.trainable_parameters()),
        run_folder=folder,
        host=began.host,
        host_notes=began.host_notes,
    )


def _refuse_unusable(data: TokenData, recipe: Recipe) -> None:
    """Raises: DataError when a split cannot fill one batch of training or one window of evaluation, or the
    tokenizer cannot read the prompt: minutes before it would show.
    """
    train, tokens = recipe.train, recipe.eval.tokens
    draw = track_batch if train.hand_off else partial(random_batch, seed=train.seed)
    draw(data.train, step=0, batch_size=train.batch_size, context=train.context)
    evaluation_windows(data.validation, tokens, train.context, train.batch_size)
    try:
        data.tokenizer.encode(recipe.eval.prompt)
    except DataError as e:
        raise DataError(f"eval.prompt: {e}") from None


def _recipe_context(target: str | Path) -> Context:
    """A recipe's context in a folder that goes away when the process ends."""
    recipe = recipes.load(target)
    temporary = tempfile.TemporaryDirectory(prefix="kssm-verify-")
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name)
    return _context(recipe, folder, prepare(recipe.data, folder / "data"))


def _run_context(folder: Path) -> Context:
    """A run's recipe, its initial parameters and, once there is a checkpoint, the trained ones."""
    recipe, data = _recipe_of(folder), TokenData.open(folder / "data")
    context = _starting(recipe, folder, data, start_of_run(recipe, data, _recipe_json(folder)))
    latest = checkpoint.load_latest(folder / "checkpoints")
    if latest:
        take(context.model, latest.snapshot.tensors[recipe.model.trained_file])
        context.history = _rows(folder)
    return context


def _recipe_of(folder: Path) -> Recipe:
    """The recipe that a run folder began with."""
    saved = _without(_recipe_json(folder), *BESIDE_RECIPE)
    return recipes.parse(saved, where=str(folder / "recipe.json"))


def _saved_host(folder: Path) -> str | None:
    """The root digest of the host that the run in `folder` began with; None where it has none."""
    described = (folder / "recipe.json").is_file()
    return _recipe_json(folder).get("host_digest") if described else None


def _examine(context: Context, level: str, stage: str, waivers: dict[str, str] | None) -> None:
    found = run_suite(context, level, waivers)
    write_checks(context.run_folder, stage, found)
    require(found)


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
    rows = []
    for temperature in (0.0, recipe.eval.temperature):
        (completion,) = generate(
            model,
            context.tokenizer,
            prompt,
            max_tokens=recipe.eval.sample_tokens,
            temperature=temperature,
            seed=recipe.train.seed,
        )
        rows.append({"prompt": prompt, "text": completion.text, "temperature": temperature})
    return rows


def _describe(folder: Path, recipe: Recipe, context: Context) -> None:
    """recipe.json, the expanded recipe and configuration, and manifest.json, what it was run with."""
    described = {**recipe.model_dump(), "configuration": models.config_to_dict(context.config)}
    if context.host:
        described["host_digest"] = context.host
        write_checks(folder, "host", [host_verdict(context.host, context.host_notes)])
    manifest = {
        "command": " ".join(["kssm", *sys.argv[1:]]) if sys.argv[0].endswith("kssm") else None,
        "parameters": sum(array.size for array in flatten(context.model.parameters()).values()),
        "trained_parameters": sum(array.size for array in context.initial.values()),
        "initial_digest": root_digest({n: tensor_digest(a) for n, a in context.initial.items()}),
        "data": context.data.index,
        "host": {"root": context.host, **context.host_notes} if context.host else None,
        "environment": environment.facts(),
    }
    with writing("the run", folder):
        for name, value in (("recipe.json", described), ("manifest.json", manifest)):
            files.replace(folder / name, json.dumps(value, indent=1) + "\n")


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


def _locate(path: Path) -> tuple[Path, Path] | None:
    """(run folder, checkpoint folder) of a run or of a checkpoint; None for weights from elsewhere."""
    if (path / "recipe.json").is_file():
        steps = checkpoint.steps(path / "checkpoints")
        if not steps:
            raise CheckpointError(f"{path} has no checkpoint yet; train it first: kssm train --resume")
        best = checkpoint.pointer(path / "checkpoints", "BEST")
        return path, best if best and best.is_dir() else list(steps.values())[-1]
    run = path.parent.parent
    return (run, path) if path.name.startswith("step_") and (run / "recipe.json").is_file() else None


def _recipe_json(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "recipe.json").read_text("utf-8"))
    except OSError as e:
        raise CheckpointError(
            f"cannot read {folder / 'recipe.json'}: {(e.strerror or str(e)).lower()}"
        ) from None
    except ValueError as e:
        raise CheckpointError(f"{folder / 'recipe.json'} is not JSON: {e}") from None


def _without(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k not in keys}


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
