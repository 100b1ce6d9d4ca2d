"""Does looking at R change what is written? Blind, measured while writing, and measured afterwards.

A forward pass is a function: what is read from its trace cannot reach its result. That the three conditions
write the same tokens, bit for bit, is therefore a test of the apparatus and no finding about the model; one
that differs has a hook or a mode that changes the computation.

Source: docs/background/phase-grafts.md#the-hook-that-does-nothing-in-evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from rich.console import Console

from kssm_mlx.experiments.job import Job, Measured
from kssm_mlx.experiments.protocols import Protocol
from kssm_mlx.experiments.protocols import train as training
from kssm_mlx.models.base import training_mode
from kssm_mlx.training.steering_sections import Section, setting

Reader = Callable[[dict[str, Any]], None]


class Options(Section):
    prompts: int = setting(16, "held-out beginnings that are continued", ge=1, le=4096)
    prompt_tokens: int = setting(32, "length of each", unit="tokens", ge=1)
    new_tokens: int = setting(64, "how many are written", unit="tokens", ge=1)
    temperature: float = setting(0.8, "of the draw; 0: always the likeliest", ge=0)


def run(job: Job, folder: Path, options: Options, console: Console) -> Measured:
    done = training.train_run(job, folder, console)
    measured = training.measure_run(done)
    ids = done.data.validation.ids[: options.prompts * options.prompt_tokens]
    prompts = mx.array(np.array(ids).reshape(-1, options.prompt_tokens).astype(np.int32))
    return observe(done.trained.model, prompts, options, job.seed, measured)


def observe(model: Any, prompts: mx.array, options: Options, seed: int, measured: Measured) -> Measured:
    """Add what the three conditions wrote and saw. Shapes: prompts [N, P] int."""
    seen: list[np.ndarray] = []
    with training_mode(model, training=False):
        blind = write(model, prompts, options, seed, lambda trace: None)
        watched = write(model, prompts, options, seed, lambda trace: seen.append(mean_coherence(trace)))
        afterwards = mean_coherence(model.forward(blind[:, :-1]).trace)
    equal = np.array(mx.all(blind == watched, axis=1))
    measured.metrics["observation_changes"] = float((~equal).mean())
    if seen and seen[0].size:
        during = np.concatenate(seen, axis=1)
        measured.metrics["R_blind_read_afterwards"] = float(afterwards.mean())
        measured.metrics["R_gap"] = float(np.abs(during - afterwards).max())
    return measured


def write(model: Any, prompts: mx.array, options: Options, seed: int, read: Reader) -> mx.array:
    """Prompts continued token by token; `read` gets the trace of every pass. Shapes: -> [N, P + new]."""
    out = model.forward(prompts)
    read(out.trace)
    tokens, key = prompts, mx.random.key(seed)
    for step in range(options.new_tokens):
        key, own = mx.random.split(key)
        new = _draw(out.logits[:, -1], options.temperature, own)[:, None]
        tokens = mx.concatenate([tokens, new], axis=1)
        if step < options.new_tokens - 1:
            out = model.forward(new, out.cache)
            read(out.trace)
    mx.eval(tokens)
    return tokens


def _draw(logits: mx.array, temperature: float, key: mx.array) -> mx.array:
    if not temperature:
        return mx.argmax(logits, axis=-1).astype(mx.int32)
    return mx.random.categorical(logits.astype(mx.float32) / temperature, key=key).astype(mx.int32)


def mean_coherence(trace: dict[str, Any]) -> np.ndarray:
    """R averaged over blocks and populations, per token; empty for a model that has none. Shapes: [N, T]."""
    found = [np.array(value).mean(axis=-1) for name, value in trace.items() if name.endswith("/R")]
    return np.mean(found, axis=0) if found else np.zeros((0, 0))


METRICS = ("observation_changes", "R_blind_read_afterwards", "R_gap")
PROTOCOL = Protocol("observe", (*training.METRICS, *METRICS), Options, run)
