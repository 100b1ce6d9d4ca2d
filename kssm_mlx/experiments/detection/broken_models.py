"""Models that are not what they should be, before step 1."""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx
from mlx.utils import tree_map, tree_unflatten

from kssm_mlx import models
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.oscillators.physics import package_step
from kssm_mlx.experiments.detection.bench import Bench
from kssm_mlx.experiments.detection.sabotage import sabotage
from kssm_mlx.models.base import Clamp, Intervention, LanguageModel, flatten, with_parameters
from kssm_mlx.models.grafts.configs import configure
from kssm_mlx.models.grafts.graft import graft
from kssm_mlx.models.transformer import Transformer
from kssm_mlx.runner.failures import recast_model


def recast_context(context: Context, *defects: type) -> Context:
    recast_model(context.model, *defects)
    return context


class FutureMean(LanguageModel):
    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        return out._replace(logits=out.logits + 0.1 * out.logits.mean(axis=1, keepdims=True))


@sabotage("C2")
def future_leak_by_mean(bench: Bench) -> Context:
    """The mean of the logits over time is added to every position."""
    return recast_context(bench.fresh("mamba"), FutureMean)


class BatchMean(LanguageModel):
    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        return out._replace(logits=out.logits + 0.1 * out.logits.mean(axis=0, keepdims=True))


@sabotage("C3")
def batch_leak(bench: Bench) -> Context:
    """Every row sees the mean of the batch."""
    return recast_context(bench.fresh("rwkv"), BatchMean)


class Counting(LanguageModel):
    calls = 0

    def forward(self, *args, **options):
        self.calls += 1
        out = super().forward(*args, **options)
        return out._replace(logits=out.logits * (1 + 0.01 * self.calls))


@sabotage("C3", "C33")
def hidden_buffer(bench: Bench) -> Context:
    """A number beside the parameters changes with every call."""
    return recast_context(bench.fresh("transformer"), Counting)


class Memoryless(LanguageModel):
    def forward(self, tokens, cache=None, intervention=None, **options):
        out = super().forward(tokens.reshape(-1, 1), None, intervention)
        return out._replace(logits=out.logits.reshape(*tokens.shape, -1), cache=cache or self.make_cache())


@sabotage("C1")
def memoryless(bench: Bench) -> Context:
    """Every token is read alone."""
    return recast_context(bench.fresh("mamba"), Memoryless)


class IdleInEvaluation(LanguageModel):
    def forward(self, tokens, cache=None, intervention=None, **options):
        idle = None if self.training else Intervention((Clamp("output", 0.0),))
        return super().forward(tokens, cache, intervention or idle, **options)


@sabotage("C4")
def idle_in_evaluation(bench: Bench) -> Context:
    """The blocks work in training mode only."""
    return recast_context(bench.fresh("kssm"), IdleInEvaluation)


class LeftInTraining(LanguageModel):
    def train(self, mode: bool = True):
        return super().train(True)


@sabotage("C4", "C6")
def dropout_left_on_in_evaluation(bench: Bench) -> Context:
    """model.eval() changes nothing."""
    return recast_context(bench.fresh("transformer", model={"dropout": 0.1}), LeftInTraining)


class DropsInEvaluation(LanguageModel):
    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        kept = 1.0 if self.training else mx.random.bernoulli(0.9, out.logits.shape)
        return out._replace(logits=out.logits * kept)


@sabotage("C4", "C6")
def dropout_in_evaluation_only(bench: Bench) -> Context:
    """The branch on `training` is the wrong way round."""
    return recast_context(bench.fresh("mamba"), DropsInEvaluation)


class Noisy(LanguageModel):
    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        return out._replace(logits=out.logits + 1e-3 * mx.random.normal(out.logits.shape))


@sabotage("C6")
def noise_in_evaluation(bench: Bench) -> Context:
    """Noise of 1e-3 on the logits, whatever the mode."""
    return recast_context(bench.fresh("kssm"), Noisy)


class Forgetful(LanguageModel):
    def forward(self, tokens, cache=None, intervention=None, **options):
        return super().forward(tokens, None, intervention, **options)


@sabotage("C5")
def cache_ignored(bench: Bench) -> Context:
    """The state that is handed in is accepted and not used."""
    return recast_context(bench.fresh("hybrid"), Forgetful)


class Lagging(LanguageModel):
    def forward(self, tokens, cache=None, intervention=None, **options):
        out = super().forward(tokens, cache, intervention, **options)
        if cache is None or tokens.shape[1] < 2:
            return out if cache is None else out._replace(cache=cache)
        return out._replace(cache=super().forward(tokens[:, :-1], cache).cache)


@sabotage("C5")
def cache_off_by_one(bench: Bench) -> Context:
    """The state that is handed on lacks the last token."""
    return recast_context(bench.fresh("rwkv"), Lagging)


class PositionsAnew(Transformer):
    def enter(self, tokens, cache, resets, lengths, key):
        return super().enter(tokens, None, resets, lengths, key)


@sabotage("C5")
def positions_from_zero_in_every_call(bench: Bench) -> Context:
    """Learned positions begin again in every piece of a text."""
    return recast_context(bench.fresh("transformer"), PositionsAnew)


class NoResets(LanguageModel):
    def hidden(self, *args, **options):
        return super().hidden(*args, **{**options, "resets": None})


@sabotage("D13")
def state_not_reset(bench: Bench) -> Context:
    """Where a document begins, the state of the one before stays."""
    return recast_context(bench.fresh("mamba"), NoResets)


class DeadGate(LanguageModel):
    def forward(self, tokens, cache=None, intervention=None, **options):
        closed = Intervention((Clamp("output", 0.0, block=1),))
        return super().forward(tokens, cache, intervention or closed, **options)


@sabotage("C7")
def dead_gate(bench: Bench) -> Context:
    """The gate of the second block is closed for good."""
    return recast_context(bench.fresh("rwkv"), DeadGate)


class HalfBranch(LanguageModel):
    def forward(self, tokens, *args, **options):
        held = [
            (n, mx.stop_gradient(p) if ".mamba." in n else p) for n, p in flatten(self.parameters()).items()
        ]
        whole = super().forward
        return with_parameters(self, tree_unflatten(held), lambda: whole(tokens, *args, **options))


@sabotage("C7")
def no_gradient_in_one_branch(bench: Bench) -> Context:
    """The gradient stops at the parameters of the Mamba branch."""
    return recast_context(bench.fresh("hybrid"), HalfBranch)


@sabotage("C7")
def parameter_nobody_reads(bench: Bench) -> Context:
    """A matrix is registered and not used."""
    context = bench.fresh("mamba")
    context.model.unused = mx.ones((4, 4))
    return context


class HalfNorm:
    def finish(self, x):
        x = (1000 * x).astype(mx.float16)
        return (x * mx.rsqrt(mx.mean(x * x, axis=-1, keepdims=True))).astype(mx.float32)


@sabotage("C7")
def fp16_overflow_in_a_norm(bench: Bench) -> Context:
    """Squares of some hundreds are summed in half precision; the norm divides by infinity."""
    return recast_context(bench.fresh("kssm"), HalfNorm)


@sabotage("C6", "C16")
def nan_in_one_tensor(bench: Bench) -> Context:
    """One entry of one matrix is NaN."""
    context = bench.fresh("hybrid")
    name, first = next((n, p) for n, p in flatten(context.model.parameters()).items() if p.ndim == 2)
    damaged = mx.where(mx.arange(first.size).reshape(first.shape) == 0, math.nan, first)
    context.model.update(tree_unflatten([(name, damaged)]))
    return context


@sabotage("C16")
def loud_tied_embedding(bench: Bench) -> Context:
    """N(0, 1) in an embedding that is also the head: the fresh model bets on the token it has read."""
    context = bench.fresh("transformer")
    weight = context.model.embedding.weight
    context.model.embedding.weight = mx.random.normal(weight.shape, key=mx.random.key(1))
    return context


class TwiceNormalised(LanguageModel):
    def project(self, hidden):
        return mx.softmax(super().project(hidden), axis=-1)


@sabotage("N18")
def double_softmax(bench: Bench) -> Context:
    """The model puts out probabilities, the loss takes them for logits."""
    return recast_context(bench.fresh("mamba"), TwiceNormalised)


class CommonShift(LanguageModel):
    def hidden(self, *args, **options):
        x, cache, trace = super().hidden(*args, **options)
        shifted = {
            n: a[..., :1] + mx.arange(a.shape[-1]) if n.endswith("/psi") else a for n, a in trace.items()
        }
        return x, cache, shifted


@sabotage("C23")
def common_shift(bench: Bench) -> Context:
    """The token turns all phases by one angle."""
    return recast_context(bench.fresh("kssm"), CommonShift)


class Repelling:
    def oscillator_step(self, theta, omega, K, dt):
        return package_step("euler", theta, omega, -K, dt)


@sabotage("C40")
def sign_of_the_coupling(bench: Bench) -> Context:
    """The sine of theta_i - theta_j: attraction repels."""
    return recast_context(bench.fresh("kssm"), Repelling)


class Clipped:
    def oscillator_step(self, theta, omega, K, dt):
        return mx.clip(package_step("euler", theta, omega, K, dt), -2 * math.pi, 2 * math.pi)


@sabotage("C40")
def wrapped_angle_clipped(bench: Bench) -> Context:
    """A clip at two turns in place of a wrap."""
    return recast_context(bench.fresh("kssm"), Clipped)


class TimeForgotten:
    def oscillator_step(self, theta, omega, K, dt):
        return package_step("euler", theta + 0.05 * omega, 0 * omega, K, dt)


@sabotage("C40")
def frequency_without_dt(bench: Bench) -> Context:
    """The frequencies are added once per step, however short a step is."""
    return recast_context(bench.fresh("kssm"), TimeForgotten)


@sabotage("C26", level="P")
def bistable_in_name_only(bench: Bench) -> Context:
    """A triadic coupling outside of its window: one attractor."""
    context = bench.fresh("kssm")
    config = models.config_from_dict({**models.config_to_dict(context.config), "triadic": (0.5, 0.5)})
    return replace(context, model=models.build(config), config=config)


@sabotage("C12")
def graft_that_overrides_its_base_model(bench: Bench) -> Context:
    """The published phase block in a base model that reads: every channel halved, the rest standardised."""
    base = bench.train_run("mamba").model
    base.freeze()
    grafted = graft(base, configure({"core": "phase_block", "legacy": True}))
    context = bench.fresh("mamba")
    return replace(context, model=grafted, initial=flatten(grafted.trainable_parameters()))


@sabotage("C24", "C25")
def clip_on_its_floor(bench: Bench) -> Context:
    """Every u of K-SSM v3 at 0.1, where neither data nor barrier can move it."""
    context = bench.fresh("kssm_v3", model={"noise": "off"}, loss={"bistability": {"weight": 0.5}})
    for block in context.model.blocks:
        weights = block.bank.to_parameters
        weights.weight, weights.bias = 0 * weights.weight, mx.array([0.5, 1.0] + [0.5] * 8)
    return replace(context, history=[{"kind": "train", "step": 1}])  # where training had taken it


class Backwards(LanguageModel):
    def forward(self, *args, **options):
        turned = tree_map(lambda p: p, self.parameters())
        for block in turned["blocks"]:
            populations = block["mixer"]["populations"]
            populations["k_scale"] = 2 - populations["k_scale"]
        whole = super().forward
        return with_parameters(self, turned, lambda: whole(*args, **options))


@sabotage("C27")
def controller_backwards(bench: Bench) -> Context:
    """More coupling, less order."""
    control, monitor = {"rule": "drift"}, {"target": "drift"}
    context = bench.fresh("kssm", model={"controlled": True}, control=control, monitor=monitor)
    return recast_context(context, Backwards)
