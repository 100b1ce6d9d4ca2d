"""Runs that were trained as they should be, and whose model or log is then not what it was."""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx
from mlx.utils import tree_unflatten

from kssm_mlx.checks.core.registry import Context
from kssm_mlx.experiments.detection.bench import Bench
from kssm_mlx.experiments.detection.broken_models import Memoryless, recast_context
from kssm_mlx.experiments.detection.sabotage import sabotage
from kssm_mlx.models.base import LanguageModel, flatten
from kssm_mlx.models.recurrent import Stack
from kssm_mlx.runner.failures import recast_model
from kssm_mlx.training.checkpoints import checkpoint


class NoResidual(Stack):
    def runner(self, i, intervention):
        block = super().runner(i, intervention)

        def run(x, *rest):
            y, *left = block(x, *rest)
            return (y - x, *left)

        return run


@sabotage("C17")
def dropped_residual(bench: Bench) -> Context:
    """Every block replaces the stream in place of adding to it."""
    return recast_context(bench.train_run("transformer"), NoResidual)


@sabotage("C32")
def wrong_norm_epsilon(bench: Bench) -> Context:
    """1 in place of 1e-6 in the last norm."""
    context = bench.train_run("kssm")
    context.model.norm.eps = 1.0
    return context


@sabotage("C17", "C32")
def weight_tying_broken(bench: Bench) -> Context:
    """The head keeps the embedding of before step 1."""
    context = bench.train_run("transformer")
    head = (context.initial or {})["embedding.weight"]

    class Untied:
        def project(self, hidden):
            return hidden @ head.T

    return recast_context(context, Untied)


@sabotage("C32")
def swapped_B_and_C(bench: Bench) -> Context:
    """The state is written by what should read it, and the other way round."""
    context = bench.train_run("mamba")
    for block in context.model.layers:
        rows = mx.split(block.mixer.x_proj.weight, block.mixer._split)
        block.mixer.x_proj.weight = mx.concatenate([rows[0], rows[2], rows[1]])
    return context


@sabotage("C32")
def wrong_decay_orientation(bench: Bench) -> Context:
    """What should be kept is forgotten: every decay w becomes 1 - w."""
    context = bench.train_run("rwkv")
    for block in context.model.layers:
        kept = mx.exp(-mx.exp(block.attention.time_decay))
        block.attention.time_decay = mx.log(-mx.log(mx.clip(1 - kept, 1e-6, 1 - 1e-6)))
    return context


@sabotage("C17", "C18")
def evaluated_without_state(bench: Bench) -> Context:
    """A model with memory is measured one token at a time, without it."""
    return recast_context(bench.train_run("kssm"), Memoryless)


class Whispering:
    def __call__(self, *args, **options):
        y, *left = super().__call__(*args, **options)  # pyright: ignore[reportAttributeAccessIssue]
        return (1e-3 * y, *left)


@sabotage("D3", "D4")
def one_mixer_at_a_thousandth(bench: Bench) -> Context:
    """The RWKV branch is there, and too quiet to be heard or taught."""
    context = bench.train_run("hybrid")
    for block in context.model.layers:
        recast_model(block.rwkv, Whispering)
    return context


@sabotage("C8")
def frozen_layer(bench: Bench) -> Context:
    """The first block is as it was before step 1."""
    context = bench.train_run("hybrid")
    still = [(n, a) for n, a in (context.initial or {}).items() if n.startswith("blocks.0.")]
    context.model.update(tree_unflatten(still))
    return context


@sabotage("C32")
def checkpoint_before_the_last_update(bench: Bench) -> Context:
    """What is saved is not what was evaluated."""
    context = bench.train_run("mamba")
    moved = [(n, a + 1e-3) for n, a in flatten(context.model.parameters()).items()]
    context.model.update(tree_unflatten(moved))
    return context


@sabotage("C32")
def best_checkpoint_pruned(bench: Bench) -> Context:
    """Retention does not know which checkpoint is the best."""
    bench.patch(checkpoint, "read_pointer", lambda folder, name: None)
    return bench.train_run("rwkv")


class ConstantR(LanguageModel):
    def hidden(self, *args, **options):
        x, cache, trace = super().hidden(*args, **options)
        return x, cache, {n: 0 * a + 0.3 if n.endswith("/R") else a for n, a in trace.items()}


@sabotage("C22")
def constant_R(bench: Bench) -> Context:
    """R is written into the trace as a constant."""
    return recast_context(bench.train_run("kssm"), ConstantR)


class DriftingR(LanguageModel):
    calls = 0

    def hidden(self, *args, **options):
        self.calls += 1
        x, cache, trace = super().hidden(*args, **options)
        drift = 0.5 + 0.4 * math.sin(self.calls / 10)
        return x, cache, {n: 0.01 * a + drift if n.endswith("/R") else a for n, a in trace.items()}


@sabotage("C38")
def R_of_a_buffer(bench: Bench) -> Context:
    """R drifts from call to call, whatever is read."""
    return recast_context(bench.train_run("kssm"), DriftingR)


class ClampsInTraining(LanguageModel):
    def hidden(self, tokens, cache=None, intervention=None, **options):
        return super().hidden(tokens, cache, intervention if self.training else None, **options)


@sabotage("C20", "C21")
def treatment_not_applied(bench: Bench) -> Context:
    """Interventions act in training mode only, and experiments are evaluations."""
    return recast_context(bench.train_run("kssm"), ClampsInTraining)


class Looping(LanguageModel):
    def forward(self, tokens, cache=None, *args, **options):
        out = super().forward(tokens, cache, *args, **options)
        if cache is None:
            return out
        following = 3 + (tokens + 1) % 5
        return out._replace(logits=30 * (mx.arange(self.args.vocab_size) == following[..., None]))


@sabotage("C19")
def generation_in_a_loop(bench: Bench) -> Context:
    """Token by token the model goes round five tokens; in one piece it reads well."""
    return recast_context(bench.train_run("transformer"), Looping)


@sabotage("C37")
def loss_not_finite(bench: Bench) -> Context:
    """From step 60 on the log has no loss, and the run went on."""
    context = bench.train_run("mamba")
    rows = [{**row, "loss": None} if row["step"] > 60 else row for row in context.history or []]
    return replace(context, history=rows)


@sabotage("C9")
def decay_on_frequencies(bench: Bench) -> Context:
    """Weight decay on every parameter of K-SSM v3, ten times as published: R climbs by itself."""
    train = {"decay": "all", "weight_decay": 2.0, "batch_size": 4}
    return bench.train_run("kssm_v3", name="decay", model={"noise": "off"}, train=train)
