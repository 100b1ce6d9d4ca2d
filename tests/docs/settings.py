"""Memory per setting: one Mamba of random weights under each way of training it, a section of docs/scale.md.

As a module it measures all and writes the section; takes some minutes. `python -m tests.docs.settings large`
measures the second table alone.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import kssm_mlx  # noqa: F401  before mlx, which takes the first BLAS that is there

# isort: split
import mlx.core as mx
from mlx.utils import tree_flatten

from kssm_mlx import files, models
from kssm_mlx.models.base import LanguageModel
from kssm_mlx.runner.initial_model import adapt_base
from kssm_mlx.training.budget.fit import show_bytes
from kssm_mlx.training.budget.measured import StepCost, predict_step
from kssm_mlx.training.budget.sums import sum_bytes
from kssm_mlx.training.recipe_sections import Pretrained, Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "scale.md"
VOCABULARY, CONTEXT = 50280, 64
STEPS = 2
# As keys of [model] and [train]; dtype is that of the frozen weights.
SETTINGS: dict[str, dict[str, Any]] = {
    "train=full": {"model": {"train": "full"}},
    "train=full optimizer=lion": {"model": {"train": "full"}, "train": {"optimizer": "lion"}},
    "train=full optimizer=adafactor": {"model": {"train": "full"}, "train": {"optimizer": "adafactor"}},
    "train=full checkpoint_blocks": {"model": {"train": "full"}, "train": {"checkpoint_blocks": True}},
    "train=lora": {"model": {"train": "lora"}},
    "train=lora checkpoint_blocks": {"model": {"train": "lora"}, "train": {"checkpoint_blocks": True}},
    "train=lora, weights in bf16": {"model": {"train": "lora"}, "dtype": mx.bfloat16},
    "train=dora": {"model": {"train": "dora"}},
    "train=qlora quantize={bits=4}": {"model": {"train": "qlora", "quantize": {"bits": 4}}},
    "train=state": {"model": {"train": "state"}},
    "train=frozen graft={core=hook}": {"model": {"train": "frozen", "graft": {"core": "hook"}}},
    "train=frozen graft={core=hook, layers=23}": {
        "model": {"train": "frozen", "graft": {"core": "hook", "layers": 23}}
    },
}


# Of these also at six times the size, where fp32 training of all of it would need more than 16 GB.
LARGE = {"hidden_size": 1536, "num_hidden_layers": 48}
FEW, ROWS = (1, 2), 4  # rows of the steps behind a prediction, and of the one that it is of
FAR = 0.15
TITLE, LARGE_TITLE, NEXT = "## Memory per setting\n", "### At 793 million\n", "## A base model"
LARGE_SETTINGS = ("train=lora", "train=qlora quantize={bits=4}", "train=frozen graft={core=hook}")


class Row(NamedTuple):
    """trained: parameters. least: weights, optimizer and gradients, summed; peak: MLX's counter; bytes."""

    setting: str
    trained: int
    least: int
    peak: int


class Foretold(NamedTuple):
    """predicted: the peak of `row` on the line that `kssm estimate` draws, from steps with fewer rows."""

    row: Row
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.row.peak - 1


def foretell(setting: str, size: str = "l", context: int = CONTEXT, **widths: int) -> Foretold:
    """The peak with `ROWS` rows, predicted and measured."""
    few = [measure(setting, size, context, rows, **widths) for rows in FEW]
    costs = [StepCost(rows, row.peak, 0.0) for rows, row in zip(FEW, few, strict=True)]
    row = measure(setting, size, context, ROWS, **widths)
    train = Train(batch_size=ROWS, context=context)
    return Foretold(row, predict_step(costs, train, row.least).peak)


def measure(setting: str, size: str = "l", context: int = CONTEXT, rows: int = 1, **widths: int) -> Row:
    """The peak of a few steps, after a first, which compiles."""
    gc.collect()
    mx.clear_cache()
    asked = SETTINGS[setting]
    model = prepared(asked, size, widths)
    train = Train(batch_size=rows, context=context, **asked.get("train", {}))
    sums, step = sum_bytes(model, train), make_step(model, train)
    tokens = mx.random.randint(0, model.args.vocab_size, (rows, context + 1), key=mx.random.key(0))
    state, metrics = step(initial_state(model, train), tokens.astype(mx.int32), None)
    mx.eval(state, metrics)
    # The parameters that the model began with would be in memory beside those of the state.
    model.update(state.params)
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in range(STEPS):
        state, metrics = step(state, tokens.astype(mx.int32), None)
        mx.eval(state, metrics)
    return Row(setting, sums.trained, sums.least, mx.get_peak_memory())


def prepared(asked: dict[str, Any], size: str, widths: dict[str, int]) -> LanguageModel:
    """The model of a setting before its first step."""
    vocabulary = VOCABULARY if size == "l" else 256
    model = models.build(models.configure("mamba", size, vocab_size=vocabulary, overrides=widths))
    if dtype := asked.get("dtype"):
        allows = model.cast_predicate
        cast = [(n, a.astype(dtype) if allows(n) else a) for n, a in tree_flatten(model.parameters())]
        model.load_weights(cast)
        mx.eval(model.parameters())
    return adapt_base(model, Pretrained(base="random", **asked["model"]), seed=0)


def section(rows: Iterable[Row]) -> str:
    """The first table of the page, under its title."""
    lines = [
        TITLE,
        "Made by `python -m tests.docs.settings`: a Mamba of random weights, 129 million parameters, one row",
        f"of {CONTEXT} tokens, fp32 where nothing else is said, compiled. What is frozen has neither gradient"
        " nor",
        "optimizer, the head too.",
        "Counter: `mx.get_peak_memory`.",
        "",
        "| setting | trained | weights, optimizer, gradients | counter |",
        "|---|---|---|---|",
        *(f"| `{r.setting}` | {r.trained:,} | {show_bytes(r.least)} | {show_bytes(r.peak)} |" for r in rows),
    ]
    return "\n".join(lines) + "\n\n"


def large_section(found: Iterable[Foretold]) -> str:
    """The second table, under its own."""
    lines = [
        LARGE_TITLE,
        "Made by `python -m tests.docs.settings large`: the same with 48 blocks of width 1,536 and "
        f"{ROWS} rows.",
        f"Predicted: as `kssm estimate` does, by the line through steps with {FEW[0]} and {FEW[1]} rows.",
        "",
        "| setting | trained | weights, optimizer, gradients | predicted | counter | error |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        sizes = " | ".join(map(show_bytes, (one.row.least, one.predicted, one.row.peak)))
        lines.append(f"| `{one.row.setting}` | {one.row.trained:,} | {sizes} | {one.error:+.1%} |")
    return "\n".join(lines) + "\n\n"


def replace_part(text: str, title: str, following: str, new: str) -> str:
    """A page with `new` in place of what goes from a title, if it is there, to the one that follows."""
    end = text.index(following)
    begin = text.index(title) if title in text else end
    return text[:begin] + new + text[end:]


def main(only_large: bool) -> None:
    if not only_large:
        rows = [said(measure(setting)) for setting in SETTINGS]
        text = PAGE.read_text("utf-8")
        following = LARGE_TITLE if LARGE_TITLE in text else NEXT
        files.replace(PAGE, replace_part(text, TITLE, following, section(rows)))
    found = [said(foretell(setting, **LARGE)) for setting in LARGE_SETTINGS]
    refuse_far(found)
    files.replace(PAGE, replace_part(PAGE.read_text("utf-8"), LARGE_TITLE, NEXT, large_section(found)))


def refuse_far(found: Iterable[Foretold]) -> None:
    """Raises: SystemExit for a prediction that is too far off to be shown as one."""
    for one in found:
        if abs(one.error) > FAR:
            raise SystemExit(
                f"{one.row.setting}: predicted {one.error:+.1%} of the counter; {FAR:.0%} at most"
            )


def said(row: Any) -> Any:
    """The same, which is printed."""
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main(sys.argv[1:] == ["large"])
