"""docs/scale.md: predicted peaks beside MLX's counter on shipped recipes; as a module it writes the page.

Takes some minutes. With names of recipes it prints the rows of these alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kssm_mlx import environment, files
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.runner.estimate import open_initial_model
from kssm_mlx.training.budget.fit import show_bytes
from kssm_mlx.training.budget.machines import MACHINES, SOURCE
from kssm_mlx.training.budget.measured import measure_step, measure_steps, predict_step
from kssm_mlx.training.budget.sums import sum_bytes
from kssm_mlx.training.constraints import build_constraints
from kssm_mlx.training.recipe import load, parse_override
from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "scale.md"
# As on a command line: a recipe, and what is set.
CASES = (
    "default",
    "groups",
    "default train.checkpoint_blocks=true",
    "default train.accumulation=2",
    "default train.precision=bfloat16",
    "baseline-gpt2",
    "baseline-mamba",
    "baseline-mamba train.checkpoint_blocks=true",
    "baseline-rwkv",
    "hybrid-v4-gf",
    "hybrid-v3",
    "v3-decay-null",
    "mqar",
    "phase-mamba",
    "phase-rwkv",
    "phase-mamba model.train=lora model.graft= train.accumulation=2",
)
HEAD = """# Memory, disk and time of a run

Made by `python -m tests.docs.scale`. `kssm estimate RECIPE|RUN|MODEL` says what a run needs before it is
begun, `kssm train RECIPE --dry-run` prints the resolved recipe as well, and `kssm train` says it in one line.

- **Summed**: parameters; weights; what the optimizer keeps of every trained parameter (AdamW 8 bytes, Lion 4,
  Adafactor almost none, Muon 4 of a matrix), and its fp32 master where the model keeps less; its gradient;
  checkpoints, the parameters and what the optimizer keeps, times those kept. No parameter of a fresh model is
  allocated for it.
- **Measured now**: steps with 1, 2, 4, ... rows, compiled as in training. Everything between the two passes
  is a row's own, so the peak is a line in the rows at a given length. `kssm estimate` then takes a step with
  all rows, where the line says that it needs at most half of MLX's limit; `kssm train` says the line, and
  measures nothing before a run of less than 200 steps. `--no-measure` leaves it out.
- **Counted from shapes**: FLOPs of the products with matrices (two per weight forward, four backward, two
  where it is frozen). Attention over the context and recurrences are not in it.
- **Not in it**: what evaluations and checks hold, and freed buffers that MLX keeps for reuse.

`kssm train` ends with exit code 2, before a fresh model is allocated, where weights, optimizer and gradients
together are more than MLX's limit of memory, or the checkpoints that are kept more than is free on the disk.
Where only the predicted peak is too much it warns, and says which `train.accumulation` would fit.

## Text larger than memory

Token files are mapped into memory. What reads all of them does so in blocks: preparation, C14, C15, and the
n-gram ladder of C17 and `kssm eval RUN`. The ladder keeps two counts for each context that the scored tokens
ask for, so it grows with `eval.tokens`, and at most 2^24 different n-grams behind them; where there are more
it reads the files again, which costs time and changes no number. `kssm eval RUN --source` reads of a file of
32 MB and more what it scores, `kssm data bpe` reads it in pieces.

What does grow with the text:

- 8 bytes for each document, and for each window of `train.context` tokens in an epoch, whose order is drawn.
- State tuning: its rows, the beginnings of all documents, 3 to 5 bytes a token.
- `data.deduplicate`: [what is repeated](recipes.md#text-and-tokenizers). Which paragraph goes depends on all
  before it.
- What is read at once: `gutenberg:`, `wikitext:`, `hf:`, the rows of a task, `kssm data describe`, which
  looks for what is there twice, and `kssm verify-weights --text` and `kssm eval MODEL --source`, which count
  on the same text that they score.

"""


class Row(NamedTuple):
    """One case. measured_rows: of the steps behind the prediction; sizes in bytes."""

    case: str
    rows: int
    measured_rows: tuple[int, ...]
    least: int
    predicted: float
    counter: float

    @property
    def error(self) -> float:
        return self.predicted / self.counter - 1


def compare(case: str) -> Row:
    """The peak predicted from fewer rows than the recipe has, and that of steps with all of them."""
    name, *settings = case.split()
    recipe = load(name, dict(parse_override(text) for text in settings))
    with tempfile.TemporaryDirectory(prefix="kssm-scale-") as folder:
        data = prepare(recipe.data, Path(folder) / "data")
        model = open_initial_model(recipe, data)
        held, rows = build_constraints(recipe, model), recipe.train.batch_size // recipe.train.accumulation
        costs = [c for c in measure_steps(recipe, model, data, held) if c.rows <= rows / 2]
        least = sum_bytes(model, recipe.train).least
        predicted = predict_step(costs, recipe.train, least).peak
        counter = measure_step(recipe, model, data, held, rows).peak
    return Row(case, rows, tuple(int(c.rows) for c in costs), least, predicted, counter)


def render(rows: Iterable[Row]) -> str:
    """The page, with the sections between that have modules of their own (settings, scale_processes)."""
    old = PAGE.read_text("utf-8")
    kept = old[old.index("## Memory per setting\n") : old.index("## Other machines\n")]
    return f"{HEAD}## Predicted and measured\n\n{_where()}\n\n{peaks(rows)}\n\n{kept}{machines()}\n"


def _where() -> str:
    device, version = environment.device(), environment.packages()["mlx"]
    name = device.get("device_name", device["type"])
    return (
        f"On {name}, MLX {version}: each recipe as it is shipped, or with what is said.\n"
        "Predicted: by the line, from half of the rows at most. Counter: `mx.get_peak_memory`, with all.\n"
        "A line cannot know where MLX changes its ways: hybrid-v3 needs less for 8 rows than for 7."
    )


def peaks(rows: Iterable[Row]) -> str:
    head = "| recipe | rows | measured with | weights, optimizer, gradients | predicted | counter | error |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in rows:
        few = ", ".join(map(str, row.measured_rows))
        sizes = " | ".join(map(show_bytes, (row.least, row.predicted, row.counter)))
        lines.append(f"| `{row.case}` | {row.rows} | {few} | {sizes} | {row.error:+.1%} |")
    return "\n".join(lines)


def machines() -> str:
    """What `--machine` knows."""
    lines = [
        "## Other machines",
        "",
        '`--machine "M2 Ultra 64"` compares with published figures. Bandwidth alone bounds the time of a',
        "step and of a token from below; arithmetic and activations come on top.",
        f"{SOURCE[0].upper()}{SOURCE[1:]}.",
        "",
        "| machine | memory | bandwidth |",
        "|---|---|---|",
    ]
    rows = (f"| {n} | {m.memory >> 30} GB | {m.bandwidth / 1e9:g} GB/s |" for n, m in MACHINES.items())
    return "\n".join([*lines, *rows])


def main() -> None:
    named = sys.argv[1:]
    rows = []
    for case in named or CASES:
        rows.append(compare(case))
        print(rows[-1], f"{rows[-1].error:+.1%}", flush=True)
    if not named:
        files.replace(PAGE, render(rows))


if __name__ == "__main__":
    main()
