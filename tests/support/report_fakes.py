"""A run folder as training leaves it, small and made up: reports read files, not how they came."""

import json
import math
from pathlib import Path

import numpy as np

LADDER = {"uniform": 4.17, "unigram": 3.31, "bigram": 2.45, "trigram": 2.05}


def write_run(folder, *, kappa=1.0, steps=60, oscillators=True) -> Path:
    """Write every file of a finished run into `folder`; returns the folder."""
    folder.mkdir(parents=True)
    rows = [row for step in range(1, steps + 1) for row in _rows(step, kappa, oscillators)]
    _write_lines(folder / "metrics.jsonl", rows)
    sample = {"step": steps, "prompt": "The ", "text": "quick sample\n| second line"}
    _write_lines(folder / "samples.jsonl", [{"step": 20, "prompt": "", "text": "an early one"}, sample])
    recipe = {
        "about": {
            "question": "Does coupling help?",
            "expected": {"metric": "nats_per_token", "value": 1.6, "tolerance": 0.02},
        },
        "data": {"source": "pydoc", "tokenizer": "bytes"},
        "model": {"family": "kssm", "kappa": kappa},
        "train": {"steps": steps},
    }
    for name, content in {
        "recipe.json": recipe,
        "manifest.json": {"parameters": 712000, "command": "kssm train default", "python": "3.11"},
        "checks.json": {"preflight": [_check("C2")], "final": [_check("C17", ladder=LADDER), waived()]},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def validation(step, kappa=1.0):
    return 1.6 + 2 * math.exp(-step / 8) + (0.04 if kappa == 0 else 0)


def waived():
    numbers = {"context_gain": 0.81, "context_gain_se": 0.02, "waived_because": "short | run"}
    return {**_check("C18", **numbers), "verdict": "waived"}


def _rows(step, kappa, oscillators):
    loss = validation(step, kappa) + 0.05 * math.sin(step)
    row = {
        "kind": "train",
        "step": step,
        "loss": loss,
        "grad_norm": 1 / step,
        "lr": 2e-3,
        "tokens_per_second": 5e3,
    }
    if oscillators:
        for block in range(2):
            values = {
                "R": 0.5 + 0.1 * block,
                "psi": math.remainder(step, 2 * math.pi),
                "h": 0.7,
                "lyapunov": -0.2,
            }
            row |= {f"{name}_block{block:02d}": value for name, value in values.items()}
    yield row
    if step % 20 == 0:
        nats = validation(step, kappa)
        yield {
            **{"kind": "eval", "step": step, "nats_per_token": nats, "se": 0.01},
            **{"perplexity": math.exp(nats), "perplexity_se": 0.05, "bits_per_byte": nats / np.log(2)},
        }
    if step == 30:
        yield {"kind": "event", "step": step, "event": "resume", "message": "resuming"}


def _check(id, **numbers):
    fields = {
        "title": "no token sees its future",
        "level": "P",
        "verdict": "pass",
        "got": "0 | 0",
        "expected": "0",
    }
    return {"id": id, **fields, "fix": "", "numbers": numbers, "seconds": 0.1, "ok": True}


def _write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
