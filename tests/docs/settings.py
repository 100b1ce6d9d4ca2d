"""Memory per setting: one Mamba of random weights under each way of training it, a section of docs/scale.md.

As a module it measures all and writes the section; takes some minutes.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from kssm_mlx import files, models
from kssm_mlx.models.base import LanguageModel
from kssm_mlx.runner.initial_model import adapt_base
from kssm_mlx.training.budget.fit import show_bytes
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
LARGE_SETTINGS = ("train=lora", "train=qlora quantize={bits=4}", "train=frozen graft={core=hook}")


class Row(NamedTuple):
    """trained: parameters. least: weights, optimizer and gradients, summed; peak: MLX's counter; bytes."""

    setting: str
    trained: int
    least: int
    peak: int


def measure(setting: str, size: str = "l", context: int = CONTEXT, **widths: int) -> Row:
    """The peak of a few steps with one row, after a first, which compiles."""
    asked = SETTINGS[setting]
    model = prepared(asked, size, widths)
    train = Train(batch_size=1, context=context, **asked.get("train", {}))
    sums, step = sum_bytes(model, train), make_step(model, train)
    tokens = mx.random.randint(0, model.args.vocab_size, (1, context + 1), key=mx.random.key(0))
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


def section(rows: Iterable[Row], large: Iterable[Row] = ()) -> str:
    """The section of the page. large: at the size `LARGE`."""
    lines = [
        "## Memory per setting",
        "",
        "Made by `python -m tests.docs.settings`: a Mamba of random weights, 129 million parameters, one row",
        f"of {CONTEXT} tokens, fp32 where nothing else is said, compiled. What is frozen has neither gradient"
        " nor",
        "optimizer, the head too.",
        "Counter: `mx.get_peak_memory`.",
        "",
        "| setting | trained | weights, optimizer, gradients | counter |",
        "|---|---|---|---|",
        *(f"| `{r.setting}` | {r.trained:,} | {show_bytes(r.least)} | {show_bytes(r.peak)} |" for r in rows),
        *(
            f"| 793 million: `{r.setting}` | {r.trained:,} | {show_bytes(r.least)} | {show_bytes(r.peak)} |"
            for r in large
        ),
    ]
    return "\n".join(lines) + "\n\n"


def main() -> None:
    rows = []
    for setting in SETTINGS:
        gc.collect()
        mx.clear_cache()
        rows.append(measure(setting))
        print(rows[-1], flush=True)
    large = []
    for setting in LARGE_SETTINGS:
        gc.collect()
        mx.clear_cache()
        large.append(measure(setting, **LARGE))
        print(large[-1], flush=True)
    new, old = section(rows, large), r"## Memory per setting\n.*?(?=## )"
    files.replace(PAGE, re.sub(old, lambda _: new, PAGE.read_text("utf-8"), flags=re.DOTALL))


if __name__ == "__main__":
    main()
