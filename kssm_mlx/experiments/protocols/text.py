"""What a model writes, measured: how varied, how repetitive, how surprising; prompt by prompt.

The unit is the prompt: repeats of one are averaged. For a run on a base model the base model writes too, with
the same seeds and sampler, so that a graft can be compared with what it sits on.

Source: Li et al. 2016, arXiv 1510.03055 (distinct-n); docs/background/phase-grafts.md#statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kssm_mlx.errors import ConfigError
from kssm_mlx.experiments.job import Job, Measured
from kssm_mlx.experiments.protocols import Protocol
from kssm_mlx.experiments.protocols import train as training
from kssm_mlx.generation import generate
from kssm_mlx.runner.base_model_cache import locate_base_model
from kssm_mlx.runner.load import load
from kssm_mlx.training.recipe_sections import Model
from kssm_mlx.training.steering_sections import Section, setting

WINDOW = 32  # tokens in which a repeated one counts
MEASURES = ("surprisal", "distinct_1", "distinct_2", "distinct_3", "repetition", "length")
PROMPTS = (
    "The function returns",
    "If the argument is",
    "This module provides",
    "Once upon a time",
    "The best way to",
    "It was a dark",
    "In the beginning",
    "Note that the",
)


class Options(Section):
    prompts: str = setting("", "a file with one prompt a line; eight short ones by default")
    repeats: int = setting(5, "texts of each prompt", ge=1, le=1000)
    new_tokens: int = setting(50, "length of each", unit="tokens", ge=4)
    temperature: float = setting(0.9, "of the draw", ge=0)


def run(job: Job, folder: Path, options: Options, console: Console) -> Measured:
    prompts = read_prompts(options.prompts)
    done = training.train_run(job, folder, console)
    measured = training.measure_run(done)
    _add(measured, "", measure_texts(done.trained, prompts, options, job.seed))
    if not isinstance(job.recipe.model, Model):
        base = load(locate_base_model(job.recipe.model), verify=job.recipe.model.verify)
        _add(measured, "base_", measure_texts(base, prompts, options, job.seed))
    return measured


def read_prompts(file: str) -> Sequence[str]:
    """Raises: ConfigError for a file that cannot be read or holds none."""
    if not file:
        return PROMPTS
    try:
        lines = Path(file).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror.lower() if isinstance(e, OSError) and e.strerror else "it is not UTF-8"
        raise ConfigError(f"options.prompts: cannot read {file}: {reason}") from None
    if not (found := [line for line in lines if line.strip()]):
        raise ConfigError(f"options.prompts: {file} holds no prompt; write one a line")
    return found


def measure_texts(
    trained: Any, prompts: Sequence[str], options: Options, seed: int
) -> dict[str, list[float]]:
    """Measure -> one value per prompt, the mean of its repeats."""
    per_prompt: dict[str, list[list[float]]] = {name: [] for name in MEASURES}
    for repeat in range(options.repeats):
        seeds = [seed * 1_000_003 + repeat * 1009 + i for i in range(len(prompts))]
        completions = generate(
            trained.model,
            trained.tokenizer,
            list(prompts),
            max_tokens=options.new_tokens,
            temperature=options.temperature,
            seeds=seeds,
        )
        for name in MEASURES:
            per_prompt[name].append([measure(c.ids, c.logprobs)[name] for c in completions])
    return {name: np.mean(rows, axis=0).tolist() for name, rows in per_prompt.items()}


def measure(ids: Sequence[int], logprobs: Sequence[float]) -> dict[str, float]:
    """Of one text: mean surprisal in nats; share of distinct n-grams; share of tokens that stood in the 32
    before; length in tokens.
    """
    grams = {n: [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)] for n in (1, 2, 3)}
    again = [ids[i] in ids[max(0, i - WINDOW) : i] for i in range(1, len(ids))]
    return {
        "surprisal": -float(np.mean(logprobs)) if logprobs else 0.0,
        **{f"distinct_{n}": len({*found}) / len(found) if found else 1.0 for n, found in grams.items()},
        "repetition": float(np.mean(again)) if again else 0.0,
        "length": float(len(ids)),
    }


def _add(measured: Measured, prefix: str, found: dict[str, list[float]]) -> None:
    for name, values in found.items():
        measured.metrics[prefix + name] = float(np.mean(values))
        measured.units[prefix + name] = values


METRICS = (*MEASURES, *(f"base_{name}" for name in MEASURES))
PROTOCOL = Protocol("text", (*training.METRICS, *METRICS), Options, run)
