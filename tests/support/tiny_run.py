"""A whole run in a fraction of a second, in this process or in one that a test may kill.

python -m tests.support.tiny_run FOLDER '{"resume": true, "fault": "before rename"}'
"""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import kssm_mlx  # noqa: F401  before mlx: another BLAS rounds otherwise

# isort: split
import numpy as np
from rich.console import Console

from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.errors import KssmError
from kssm_mlx.training import loop
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.json_lines import Rows
from kssm_mlx.training.loop import Callbacks, Result, train_loop
from kssm_mlx.training.parallel.ranks import ALONE, Settled, open_ranks
from kssm_mlx.training.recipe import Recipe, parse
from tests.support.compiling import compiling
from tests.support.fakes import TinyRecurrent

ROOT = Path(__file__).parents[2]
STEPS = 12  # the training text has 9 batches, so a run crosses an epoch
TIMINGS = {"tokens_per_second", "seconds"}


def tiny_recipe(folder: Path, **sections) -> Recipe:
    """A recipe on a text in the parent of `folder`; `sections` change single keys, as train={"steps": 3}."""
    text = folder.parent / "text.txt"
    if not text.exists():
        text.parent.mkdir(exist_ok=True)
        letters = np.random.default_rng(0).choice(list("abcd e"), 700)
        text.write_text("".join(letters))
    table = {
        "data": {"source": f"file:{text}", "tokenizer": "chars"},
        "train": {"steps": STEPS, "batch_size": 4, "context": 16, "warmup": 2, "learning_rate": 0.01},
        "eval": {"every": 4, "tokens": 256},
        "save": {"every": 4},
    }
    return parse({name: {**table.get(name, {}), **sections.get(name, {})} for name in {*table, *sections}})


def tiny_model(vocab_size: int = 6, width: int = 8, kind: type = TinyRecurrent) -> TinyRecurrent:
    return kind(vocab_size, width=width, blocks=1, seed=6)


def tiny_run(
    folder: Path,
    *,
    resume=False,
    allow=False,
    compiled=False,
    hooks=None,
    model=None,
    out=None,
    console=None,
    ranks=ALONE,
    **sections,
) -> Result:
    """Train a tiny model in `folder`; what a person would see goes to `out`.

    Compiled where that is what is tested: on a fresh machine each kernel costs a second of g++.
    """
    recipe = ranks.in_turn(lambda: tiny_recipe(folder, **sections))
    data = ranks.in_turn(lambda: prepare(recipe.data, folder.parent / "data"))
    ticks = itertools.count()
    with compiling(compiled):
        return train_loop(
            model or tiny_model(data.vocab_size),
            recipe,
            data,
            folder,
            resume=resume,
            allow_config_change=allow,
            hooks=hooks or Callbacks(),
            console=console or Console(file=out or io.StringIO(), width=200),
            clock=lambda: float(next(ticks)),
            ranks=ranks,
        )


def rows(folder: Path, *kinds: str) -> list[dict]:
    """Rows of metrics.jsonl without their timings."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in found if row["kind"] in kinds]


def saved(folder: Path) -> checkpoint.Loaded:
    return checkpoint.load_latest(folder / "checkpoints")


def in_process(folder: Path, **options) -> subprocess.CompletedProcess:
    """`tiny_run` in a process of its own; it ends with the exit code of its error."""
    return subprocess.run(command(folder, **options), cwd=ROOT, capture_output=True, text=True)


def command(folder: Path, **options) -> list[str]:
    return [sys.executable, "-m", "tests.support.tiny_run", str(folder), json.dumps(options)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at(owner, attribute: str, doomed, seen: int) -> None:
    """Replace a function: its call number `seen` among those that `doomed` accepts is SIGKILL instead."""
    real, count = getattr(owner, attribute), itertools.count(1)

    def fatal(*args, **kwargs):
        if doomed(*args) and next(count) == seen:
            die()
        return real(*args, **kwargs)

    setattr(owner, attribute, fatal)


# Where a process dies, mostly while it writes its second checkpoint:
# what is replaced, which of its calls count, which of those is hit.
FAULTS = {
    "before tensors": (
        checkpoint.files,
        "write_synced",
        lambda p, write: p.name == "optimizer.safetensors",
        2,
    ),
    "before manifest": (checkpoint, "_write_json", lambda p, value: p.name == "manifest.json", 2),
    "before rename": (os, "rename", lambda old, new: new.name.startswith("step_0000"), 2),
    "before LATEST": (checkpoint, "write_pointer", lambda folder, name, to: name == "LATEST", 2),
    "before BEST": (checkpoint, "write_pointer", lambda folder, name, to: name == "BEST", 2),
    "before pruning": (checkpoint, "_prune_checkpoints", lambda folder, keep: True, 2),
    "before a row": (Rows, "write", lambda rows, row: row["step"] == 7, 1),
    "before a batch": (loop, "random_batch", lambda split, seed, step, *sizes: step == 6, 1),
}


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    ranks = open_ranks()
    options |= options.pop("of_rank", {}).get(str(ranks.rank), {})
    if fault := options.pop("fault", None):
        _kill_at(*FAULTS[fault])
    stop_at = options.pop("announce", None)
    hooks = Callbacks(on_step=lambda step, row: step == stop_at and _announce(step))
    try:
        with ranks.explain_lost_rank(lambda: f"what there is: {saved(folder).path.name}"):
            tiny_run(folder, hooks=hooks, out=sys.stdout, ranks=ranks, **options)
    except Settled as e:
        raise SystemExit(e.exit_code) from None
    except KssmError as e:
        print(e, file=sys.stderr)
        raise SystemExit(e.exit_code) from None


def _announce(step: int) -> None:
    """Tell the parent which step this is, and wait for what it does about it."""
    print(f"at {step}", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
