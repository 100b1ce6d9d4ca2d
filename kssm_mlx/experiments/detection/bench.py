"""Small healthy runs of five families, each trained once, and what a row may do to them."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console

from kssm_mlx import files
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tokens import TokenData, TokenSplit
from kssm_mlx.runner.folder import write_description
from kssm_mlx.runner.prepare import open_run_context, prepare_context
from kssm_mlx.training.loop import Callbacks, train_loop
from kssm_mlx.training.recipe import Recipe, parse

SIZES: dict[str, dict[str, Any]] = {
    "kssm": {"d_model": 24, "n_layers": 2, "n_groups": 12, "mlp_hidden": 32},
    "mamba": {"hidden_size": 24, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 24, "num_hidden_layers": 2},
    "hybrid": {"d_model": 32, "n_layers": 2, "head_dim": 16, "mamba_head_dim": 16, "state_size": 8},
    "transformer": {"d_model": 48, "n_layers": 2, "n_heads": 2},
    "kssm_v3": {},
    "hybrid_v3": {},
}
CONTROLS = ("kssm", "mamba", "rwkv", "hybrid", "transformer")
TRAIN = {"steps": 100, "batch_size": 8, "context": 32, "warmup": 5, "learning_rate": 1e-2}
SLOWER = {"transformer": {"steps": 180, "learning_rate": 5e-3}}

NAMES = ("ada", "bertrand", "carl", "dora", "emmy", "franz", "grete", "hugo", "ida", "jules", "nora", "otto")
VERBS = ("sees", "hears", "visits", "follows", "invites", "remembers", "answers", "surprises")
PLACES = ("at home", "in the garden", "near the station", "under the bridge", "by the river")


def make_sentences(count: int, seed: int = 0) -> str:
    """Lines such as "nora remembers carl by the river.": more in them than pairs, and learned in seconds."""
    random = np.random.default_rng(seed)
    return "".join(
        f"{random.choice(NAMES)} {random.choice(VERBS)} {random.choice(NAMES)} {random.choice(PLACES)}.\n"
        for _ in range(count)
    )


class Bench:
    """Contexts before step 1 (`fresh`) and of a finished run (`trained`), a new model each time."""

    def __init__(self, home: Path):
        self.home, self._patches = home, ExitStack()
        self.text("plain", make_sentences(4000))

    def text(self, name: str, text: str) -> str:
        """The source of a text that is written into the bench's folder."""
        path = self.home / f"{name}.txt"
        if not path.exists():  # another process may be reading it
            files.replace(path, text)
        return f"file:{path}"

    def recipe(self, family: str, seed: int = 0, **sections: dict[str, Any]) -> Recipe:
        """The recipe of a control, with other values in some of its sections."""
        own = {
            "data": {"source": f"file:{self.home / 'plain.txt'}", "tokenizer": "chars"},
            "model": {"family": family, "size": "xs", **SIZES[family]},
            "train": {**TRAIN, **SLOWER.get(family, {}), "seed": seed},
            "eval": {"every": 50, "tokens": 2048, "sample_tokens": 0},
            "save": {"every": 50},
        }
        merged = {name: {**table, **sections.get(name, {})} for name, table in own.items()}
        return parse({**sections, **merged})

    def data(self, recipe: Recipe) -> TokenData:
        """The token files of a recipe, made once."""
        return prepare(recipe.data, self.home / "data" / Path(recipe.data.source).stem / recipe.data.split)

    def fresh(self, family: str, seed: int = 0, **sections: dict[str, Any]) -> Context:
        recipe, folder = self.recipe(family, seed, **sections), self.home / "nothing yet"
        folder.mkdir(exist_ok=True)
        return replace(prepare_context(recipe, folder, self.data(recipe)), history=[], seed=seed)

    def train_run(self, family: str, seed: int = 0, name: str = "", **sections: dict[str, Any]) -> Context:
        """name: of a run that is not as its recipe says, because something is patched."""
        folder = self.home / "runs" / f"{family}-{seed}{name and f'-{name}'}"
        if not folder.exists():
            self._train(self.recipe(family, seed, **sections), folder)
        return replace(open_run_context(folder), seed=seed)

    def _train(self, recipe: Recipe, folder: Path) -> None:
        """A run without its checks."""
        folder.mkdir(parents=True)
        context = prepare_context(recipe, folder, prepare(recipe.data, folder / "data"))
        write_description(folder, recipe, context, {}, verify=False)
        quiet = Console(file=io.StringIO())
        train_loop(context.model, recipe, context.data, folder, hooks=Callbacks(), console=quiet)

    def patch(self, owner: Any, name: str, value: Any) -> None:
        """`owner.name = value` until the row has been measured."""
        self._patches.enter_context(mock.patch.object(owner, name, value))

    def mend(self) -> None:
        """Undo all patches."""
        self._patches.close()


def with_ids(context: Context, train: Any = None, validation: Any = None) -> Context:
    """The context with other ids in one split or both, on disk all is as it was."""
    given = {"train": train, "validation": validation}
    splits = {
        name: TokenSplit(name, np.asarray(ids), np.zeros(1, np.int64))
        for name, ids in given.items()
        if ids is not None
    }
    return replace(context, data=replace(context.data, **splits))
