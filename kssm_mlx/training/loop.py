"""The loop of training: the only place where a step meets files, clocks, signals and people.

    per step        draw the batch of this cursor, take the step, write a row of metrics.jsonl
    eval.every      score the held-out windows, sample, remember the best
    phase           after a step or an evaluation the next may begin: other rows, another rate, other masks
    save.every      write a checkpoint; also at the end, at a new best, and when a signal asks to stop

A run that was killed and resumed is, bit for bit on a CPU, the run that was not: parameters, optimizer,
batches, rows. What resuming did is told by rows of kind "event", and timings differ. Of several processes
(training/parallel) each runs this loop; all decide by the same numbers, and rank 0 writes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console

from kssm_mlx.data.batches import count_sources, evaluation_windows, random_batch, track_batch
from kssm_mlx.errors import CheckFailed, CheckpointError
from kssm_mlx.files import explain_write_errors
from kssm_mlx.models.base import Intervention, LanguageModel, flatten
from kssm_mlx.runs import layout, lock
from kssm_mlx.training.checkpoints import checkpoint, identity
from kssm_mlx.training.curriculum.lengths import measure_lengths
from kssm_mlx.training.curriculum.phases import Place, Reads, advance, open_phase, phase_masks, rate_of
from kssm_mlx.training.curriculum.sections import Phase
from kssm_mlx.training.early_stopping import Advice
from kssm_mlx.training.evaluation import make_evaluator, source_metrics
from kssm_mlx.training.json_lines import NoRows, Rows, to_plain
from kssm_mlx.training.loss_terms import parse_terms
from kssm_mlx.training.monitoring import EarlyStopping, Monitoring
from kssm_mlx.training.parallel.ranks import ALONE, Ranks, Settled, fingerprint
from kssm_mlx.training.parallel.snapshots import share_checkpoint
from kssm_mlx.training.progress import Progress
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.signals import StopRequest, make_interrupted
from kssm_mlx.training.state import TrainState, from_arrays, initial_state, to_arrays, with_knobs
from kssm_mlx.training.step import Step, make_step

SKIPS_ALLOWED = 10  # updates refused in a row for a gradient that is not finite, before the run is given up

Row = dict[str, Any]


@dataclass(frozen=True)
class Callbacks:
    """What others do during a run; each may raise a KssmError to end it.

    sample(model, key) -> rows for samples.jsonl, after each evaluation, the model holding the parameters of
    that step; on_step(step, row), with the row just written; on_eval(step, state, row).
    """

    sample: Callable[[LanguageModel, mx.array], list[Row]] | None = None
    on_step: Callable[[int, Row], None] | None = None
    on_eval: Callable[[int, TrainState, Row], None] | None = None


@dataclass(frozen=True)
class Result:
    """Where a run ended. `best` and `evaluation` (the last) are rows of kind "eval"; {} if there was none.

    started_at: the step it was resumed from, 0 for a fresh start.
    """

    state: TrainState
    step: int
    best: Row
    evaluation: Row
    started_at: int

    @property
    def was_finished(self) -> bool:
        """Nothing was left to do."""
        return self.started_at == self.step


def train_loop(
    model: LanguageModel,
    recipe: Recipe,
    data: Any,
    folder: str | Path,
    *,
    resume: bool = False,
    allow_config_change: bool = False,
    hooks: Callbacks = Callbacks(),
    console: Console | None = None,
    clock: Callable[[], float] = time.perf_counter,
    masks: dict[str, mx.array] | None = None,
    intervention: Intervention | None = None,
    ranks: Ranks = ALONE,
) -> Result:
    """Train `model` on `data` until `recipe.train.steps`; it holds the final parameters afterwards.

    Writes metrics.jsonl, samples.jsonl and checkpoints/ in `folder`, whose lock it takes unless this process
    holds it already. masks, intervention: as `training.step.make_step` takes them; an intervention is held in
    evaluations too. Neither is part of the recipe: whoever resumes the run must give them again. ranks: the
    processes that run this together; hooks are called in rank 0.

    Raises: Interrupted after SIGINT or SIGTERM, with the state saved; CheckFailed when the gradient stays
        not finite; CheckpointError, ConfigError, DataError in one line for what cannot be used or written.
    """
    _set_cache_limit()
    # kssm train took the lock before it prepared the data; taken twice, it would refuse itself.
    held = contextlib.nullcontext() if not ranks.first or lock.is_held_here(folder) else lock.hold(folder)
    progress = Progress(recipe.train.steps, console, clock)
    with (
        held,
        StopRequest(ranks.first) as stop,
        progress,
        contextlib.ExitStack() as open_files,
        ranks.ignore_sigterm(),
    ):
        run = _Run(model, recipe, data, Path(folder), hooks, progress, clock, masks, intervention, ranks)
        run.begin(resume, allow_config_change)
        run.open(open_files)
        run.go(stop)
    return Result(run.state, run.step, run.best, run.evaluation, run.started_at)


def refuse_second_run(folder: Path) -> None:
    """Raises: CheckpointError if the folder already has checkpoints of a run."""
    if layout.list_checkpoints(folder / layout.CHECKPOINTS):
        raise CheckpointError(
            f"{folder} already holds a run; kssm train {folder} --resume goes on with it, "
            "or choose another folder"
        )


class _Run:
    """The loop's variables, and the moves between them."""

    def __init__(
        self,
        model,
        recipe: Recipe,
        data,
        folder: Path,
        hooks: Callbacks,
        progress: Progress,
        clock,
        masks,
        held,
        ranks: Ranks,
    ):
        self.ranks = ranks
        self.model, self.recipe, self.data, self.folder = model, recipe, data, folder
        self.hooks, self.progress, self.clock = hooks, progress, clock
        self.checkpoints = folder / layout.CHECKPOINTS
        self.identity = identity.describe_identity(model, recipe, data)
        self.environment = identity.describe_environment(ranks.size)
        self.state = initial_state(model, recipe.train)
        self.watch, self.course = (
            Monitoring(recipe, model.model_type, self.state.knobs),
            EarlyStopping(recipe),
        )
        self.phases, self.place = recipe.phases, Place()
        self.reads = ranks.in_turn(self._open_phases)
        self.masks = [phase_masks(phase, model, masks or {}) for phase in self.phases]
        self.state = self.state._replace(rate=mx.array(rate_of(self.phases[0], recipe)))
        self.make_step = partial(
            make_step,
            model,
            recipe.train,
            loss=parse_terms(recipe.loss, model.args.vocab_size),
            intervention=held,
            monitor=self.watch.active,
            ranks=ranks,
        )
        self.steps: dict[str, Step] = {}
        self.score = make_evaluator(model, intervention=held, ranks=ranks)
        self.step = self.tokens = self.started_at = 0
        self.best: Row = {}
        self.evaluation: Row = {}
        self.events: list[Row] = []

    def _open_phases(self) -> list[Reads]:
        folder = self.folder / layout.DATA
        return [
            open_phase(phase, self.recipe, self.data, folder / f"phase-{i}")
            for i, phase in enumerate(self.phases, start=1)
        ]

    def begin(self, again: bool, allow_change: bool) -> None:
        """Start from step 0 or, `again`, from the last good checkpoint."""
        if self.ranks.size > 1:
            self.ranks.require_same("run", self._describe_run(again))
            # Last, since another seed or size, which is what to mend, gives other parameters as well.
            self.ranks.require_same("run", self._describe_parameters())
        with self.ranks.end_together():
            loaded = self._load(again) if self.ranks.first else None
        loaded = share_checkpoint(loaded, self.ranks)
        with self.ranks.end_together():
            if loaded:
                self._restore(loaded, allow_change)
            elif again:
                self._log_event("resume", f"{self.folder} has no checkpoint yet: starting from step 0")
        # What was the best may have been deleted, which only rank 0 can see.
        self.best = self.ranks.gather(self.best)[0]

    def _describe_run(self, again: bool) -> dict[str, Any]:
        """What all ranks must have alike before the first step, beside their parameters."""
        kept = {name: self.environment[name] for name in ("kssm_mlx", "mlx", "device")}
        return {**self.identity["config"], "--resume": again, **kept}

    def _describe_parameters(self) -> dict[str, Any]:
        return {f"parameter {n}": value for n, value in fingerprint(flatten(self.state.params)).items()}

    def _load(self, again: bool) -> checkpoint.Loaded | None:
        if not again:
            refuse_second_run(self.folder)
        with explain_write_errors("checkpoints", self.checkpoints):
            checkpoint.remove_leftovers(self.checkpoints)
        return checkpoint.load_latest(self.checkpoints)

    def _restore(self, loaded: checkpoint.Loaded, allow_change: bool) -> None:
        """Become the run that wrote the checkpoint. Nothing on disk changes before everything is accepted."""
        saved, fresh = loaded.snapshot, self.state
        changed = identity.require_unchanged(saved.state["identity"], self.identity, allow=allow_change)
        trained = saved.tensors.get(self.recipe.model.trained_file, {})
        restored = from_arrays(trained, saved.tensors["optimizer"])
        identity.require_same_parameters(restored, fresh)
        keeps_carry = identity.carry_fits(restored.carry, self.recipe)
        carry = self.ranks.take(restored.carry) if keeps_carry else None
        # What an older checkpoint does not have begins as in a fresh run.
        knobs, buffers = {**fresh.knobs, **restored.knobs}, {**fresh.buffers, **restored.buffers}
        average = None if fresh.average is None else restored.average or restored.params
        self.state = restored._replace(carry=carry, knobs=knobs, buffers=buffers, average=average)
        self.step = self.started_at = saved.step
        self.tokens, self.best, self.evaluation = (saved.state[k] for k in ("tokens", "best", "evaluation"))
        self.watch.visits = saved.state.get("visits", self.watch.visits)
        self.course.memory = saved.state.get("course", self.course.memory)
        self.place = Place(**saved.state.get("phase", {}))
        self._log_restored(loaded, changed)
        if self.ranks.first:
            with explain_write_errors("checkpoints", self.checkpoints):
                self._repair_checkpoints(loaded)

    def _log_restored(self, loaded: checkpoint.Loaded, changed: list[str]) -> None:
        for reason in loaded.skipped.values():
            self._log_event("damaged", f"{reason}; falling back to {loaded.path.name}")
        done = f"{self.step} of {self.recipe.train.steps} steps are done"
        if self.course.stopped:
            more = "to train on, take [monitor.patience] out and pass --allow-config-change"
            self.progress.say(f"{self.folder} was stopped by {self.course.stopped}; {more}")
        elif self.place.index >= len(self.phases):
            self.progress.say(f"{self.folder} is finished: its last phase ended after step {self.step}")
        elif self.step < self.recipe.train.steps:
            self._log_event("resume", f"resuming {self.folder}: {done}")
        else:
            more = "to train longer, raise train.steps and pass --allow-config-change"
            self.progress.say(f"{self.folder} is finished: {done}; {more}")
        for difference in changed:
            self._log_event("change", f"allowed change: {difference}")
        then, now = ({"processes": 1, **e} for e in (loaded.snapshot.state["environment"], self.environment))
        for difference in identity.list_differences(then, now):
            self._log_event("change", f"{difference}: bitwise equality is not promised")

    def _repair_checkpoints(self, loaded: checkpoint.Loaded) -> None:
        """Set damaged checkpoints aside, and make LATEST and BEST name good ones."""
        for path in loaded.skipped:
            checkpoint.set_aside(path)
        checkpoint.write_pointer(self.checkpoints, layout.LATEST, loaded.path)
        best = layout.list_checkpoints(self.checkpoints).get(self.best.get("step", -1))
        if best:
            checkpoint.write_pointer(self.checkpoints, layout.BEST, best)
        else:  # somebody deleted it: the next evaluation is the best there is
            self.best = {}
            (self.checkpoints / layout.BEST).unlink(missing_ok=True)

    def open(self, stack: contextlib.ExitStack) -> None:
        """Open the row files, cut back to where the run begins, and write what there is to tell."""
        kind = Rows if self.ranks.first else NoRows
        self.metrics = stack.enter_context(contextlib.closing(kind(self.folder / layout.METRICS, self.step)))
        self.samples = stack.enter_context(contextlib.closing(kind(self.folder / layout.SAMPLES, self.step)))
        for event in self.events:
            self.metrics.write(event)

    def go(self, stop: StopRequest) -> None:
        """Step until the recipe's last step or a signal."""
        self.progress.begin(self.step)
        if self._goes_on() and mx.default_device() == mx.cpu:
            # Each fused kernel is a run of g++, about a hundred for K-SSM; they are kept in TMPDIR.
            self.progress.say(
                "compiling the first step: with an empty cache a minute or two, otherwise seconds"
            )
        while self._goes_on():
            self._take_one_step()
            evaluated = self._is_due(self.recipe.eval.every)
            improved = evaluated and self._evaluate()
            measured = self.evaluation if evaluated else None
            self._enter_phase(advance(self.phases, self.place, self.step, measured))
            # Before anybody saves: a signal that one rank got is for all of them.
            signal = stop.of(self.ranks.largest(stop.signal or 0))
            if self._is_due(self.recipe.save.every) or improved or signal or not self._goes_on():
                self._save_checkpoint(improved, pinned=signal.name if signal else "")
            if signal:
                raise make_interrupted(
                    signal, f"saved after step {self.step}; to go on: kssm train {self.folder} --resume"
                )
        # A step leaves the model as it found it: what was trained is in the state until here.
        self.model.update(self._run_parameters())

    def _run_parameters(self) -> dict[str, Any]:
        return with_knobs(self.state.evaluated, self.state.untrained)

    def _goes_on(self) -> bool:
        ended = self.course.stopped or self.place.index >= len(self.phases)
        return self.step < self.recipe.train.steps and not ended

    @property
    def _in_phases(self) -> bool:
        """Whether the recipe divides the run."""
        return self.phases != (Phase(),)

    @property
    def _phase_index(self) -> int:
        """The index of the phase of the next step, or of the last there was."""
        return min(self.place.index, len(self.phases) - 1)

    @property
    def _read_settings(self) -> Reads:
        return self.reads[self._phase_index]

    def _enter_phase(self, place: Place) -> None:
        """Begin the phase of `place`, unless it is where the run is already."""
        if place == self.place:
            return
        self.place = place
        over = place.index >= len(self.phases)
        message = f"phase {self._phase_index + 1} of {len(self.phases)}" + (
            " is over, and the run with it" if over else f": rows of {self._read_settings.context} tokens"
        )
        self.progress.say(f"step {self.step}: {message}")
        self.metrics.write({"kind": "event", "step": self.step, "event": "phase", "message": message})
        if not over:
            self.state = self.state._replace(
                rate=mx.array(rate_of(self.phases[self._phase_index], self.recipe))
            )

    def _step_of_phase(self) -> Step:
        """The compiled step; phases that hold the same share one, and compile anew for another context."""
        phase = self.phases[self._phase_index]
        key = json.dumps([phase.trains, phase.freeze and phase.freeze.model_dump()])
        if key not in self.steps:
            self.steps[key] = self.make_step(masks=self.masks[self._phase_index] or None)
        return self.steps[key]

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.train.steps

    def _take_one_step(self) -> None:
        """One step and its row."""
        began = self.clock()
        tokens, resets = self._read_batch()
        self.state, metrics = self._step_of_phase()(self.state, tokens, resets)
        # Here, so that the time of a step is its own, and no graph grows from step to step.
        mx.eval(self.state, metrics)
        self.step += 1
        row = {
            "kind": "train",
            "step": self.step,
            **self._describe_phase(),
            **{name: to_plain(value) for name, value in metrics.items()},
            **self._count_tokens(),
        }
        row["tokens_per_second"] = row["tokens"] / max(self.clock() - began, 1e-9)
        self.tokens += row["tokens"]
        row, knobs = self.watch.step(row, self.state.knobs)
        self.state = self.state._replace(knobs=knobs)
        self.course.step(row)
        self.metrics.write(row)
        self.progress.step(row)
        self._refuse_divergence(row)
        if self.hooks.on_step and self.ranks.first:
            self.hooks.on_step(self.step, row)

    def _read_batch(self) -> tuple[mx.array, mx.array | None]:
        """The batch of this step: a pure function of the recipe, the phase and the cursor."""
        train, (data, context, _) = self.recipe.train, self._read_settings
        if train.hand_off:
            tokens, resets = track_batch(data.train, self.step, train.batch_size, context)
        else:
            tokens, resets = random_batch(data.train, train.seed, self.step, train.batch_size, context)
        tokens, resets = self.ranks.take([tokens, resets])
        return mx.array(tokens), None if resets is None else mx.array(resets)

    def _count_tokens(self) -> Row:
        """Columns of a row: of a mixture, the tokens of each source in the batch that was read last."""
        train, (data, context, _) = self.recipe.train, self._read_settings
        rows = count_sources(data.train, train.seed, self.step - 1, train.batch_size)
        return {f"tokens:{name}": count * context for name, count in rows.items()}

    def _describe_phase(self) -> Row:
        """Columns of a row: the number of the phase, from 1, and the tokens of its rows."""
        return (
            {"phase": self._phase_index + 1, "context": self._read_settings.context}
            if self._in_phases
            else {}
        )

    def _refuse_divergence(self, row: Row) -> None:
        if row["skips"] >= SKIPS_ALLOWED:
            raise CheckFailed(
                f"the gradient was not finite for {SKIPS_ALLOWED} steps in a row, up to step {self.step} "
                f"(learning rate {row['lr']:.3g}); lower train.learning_rate or raise train.warmup"
            )

    def _evaluate(self) -> bool:
        """Score, sample, tell; True for a new best. Training is not touched: the windows are fixed."""
        began, (data, context, task) = self.clock(), self._read_settings
        tokens, batch_size = self.recipe.eval.tokens, self.recipe.train.batch_size
        windows = evaluation_windows(data.validation, tokens, context, batch_size)
        score = partial(self.score, self._run_parameters())
        numbers = score(windows, data.bytes_per_target, task, partial(source_metrics, data=data))
        if self._is_due(self.recipe.eval.lengths_every or self.recipe.eval.every):
            numbers |= measure_lengths(score, task, self.recipe.data.seed)
        numbers = {name: to_plain(value) for name, value in numbers.items()}
        about = {"kind": "eval", "step": self.step, **self._describe_phase()}
        self.evaluation = {**about, **numbers, **self.watch.residence()}
        improved = _is_better(self.evaluation, self.best)
        self.best = self.evaluation if improved else self.best
        self.metrics.write({**self.evaluation, "seconds": self.clock() - began})
        self.progress.evaluation(self.evaluation)
        self._apply_early_stopping(self.course.judge_evaluation(self.evaluation))
        self._write_samples()
        self._run_eval_checks(improved)
        return improved

    def _apply_early_stopping(self, advice: Advice | None) -> None:
        """Do what the rules say of the held-out loss, and write it down; stopping is up to `go`."""
        if advice is None:
            return
        if advice.action == "CUT" and self.course.options:
            self.state = self.state._replace(rate=self.state.rate * self.course.options.cut)
        message = f"{advice.action} ({advice.rule}): {advice.reason}"
        self.progress.say(f"step {self.step}: {message}")
        self.metrics.write({"kind": "event", "step": self.step, "event": "patience", "message": message})

    def _run_eval_checks(self, improved: bool) -> None:
        """Let others judge the evaluation; who stops the run over it leaves a checkpoint that can go on."""
        failed: CheckFailed | None = None
        try:
            if self.hooks.on_eval and self.ranks.first:
                self.hooks.on_eval(self.step, self.state, self.evaluation)
        except CheckFailed as e:
            failed = e
        if self.ranks.largest(failed.exit_code if failed else 0):
            self._save_checkpoint(improved, pinned="a failed check")
            raise failed or Settled(CheckFailed.exit_code)

    def _write_samples(self) -> None:
        if not self.hooks.sample or not self.ranks.first:
            return
        self.model.update(self._run_parameters())
        for row in self.hooks.sample(self.model, self.state.key):
            self.samples.write({"step": self.step, **row})

    def _save_checkpoint(self, best: bool, pinned: str) -> None:
        self._require_one_model()
        complete = self.state._replace(carry=self.ranks.join(self.state.carry))
        if not self.ranks.first:
            return
        # The rows first: no checkpoint knows of a step that metrics.jsonl may lose in a crash.
        for rows in (self.metrics, self.samples):
            rows.sync()
        trained, rest = to_arrays(complete)
        tensors = {self.recipe.model.trained_file: trained, "optimizer": rest}
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "cursor": self.state.cursor.item(),
            "key": self.state.key.tolist(),
            "best": self.best,
            "evaluation": self.evaluation,
            "visits": self.watch.visits,
            "course": self.course.memory,
            "phase": self.place._asdict(),
            "identity": self.identity,
            "environment": self.environment,
        }
        snapshot = checkpoint.Snapshot(self.step, tensors, state, pinned)
        checkpoint.save(self.checkpoints, snapshot, keep=self.recipe.save.keep, best=best)

    def _require_one_model(self) -> None:
        """Raises: CheckFailed where ranks no longer hold the same parameters; no checkpoint is written then.

        Sums over ranks are the same bits in all of them. What each computes with them is too, on machines of
        one kind.
        """
        if self.ranks.size == 1:
            return
        held = self.ranks.gather(fingerprint(flatten(self.state.params)))
        if apart := [rank for rank, own in enumerate(held) if own != held[0]]:
            raise CheckFailed(
                f"after step {self.step} rank {apart[0]} has other parameters than rank 0: processes that "
                "train one model must compute alike; start them on machines of one kind"
            )

    def _log_event(self, event: str, message: str) -> None:
        """Say it now, and write it as a row once metrics.jsonl is open."""
        self.progress.say(message)
        self.events.append({"kind": "event", "step": self.step, "event": event, "message": message})


def _is_better(new: Row, best: Row) -> bool:
    """Whether an evaluation has the lowest nats per token of its phase; one that is not finite never has."""
    nats = new["nats_per_token"]
    first = not best or new.get("phase") != best.get("phase")  # other rows: the losses do not compare
    return nats is not None and (first or nats < best["nats_per_token"])


def _set_cache_limit() -> None:
    """Let MLX keep freed buffers for the next step, but not the whole of a Mac's memory as it would."""
    memory = int(mx.device_info().get("max_recommended_working_set_size", 4 << 30))
    mx.set_cache_limit(memory // 4)
