"""A base model trained here, for want of a pretrained one: `base = "recipe:NAME"`.

The recipe is trained once, for every run that names it, and exported into the cache. What it became is a base
model like any other: judged by all of `kssm verify-weights`, on held-out text of its own data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from kssm_mlx.data.tokenizers.huggingface import tokenizer_files
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import CheckFailed
from kssm_mlx.runner.base_model_cache import cache_folder
from kssm_mlx.runner.load import load
from kssm_mlx.runner.verify_weights import verify_weights
from kssm_mlx.runs.layout import is_run
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.recipe_sections import Model, Pretrained
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.export import export

TEXT_TOKENS = 32768  # of held-out text, four times what L5 scores


def ensure_base_model(section: Pretrained | Model, train: Callable[..., Any]) -> None:
    """Train, export and verify the recipe that a base model is to come from, unless that is done.

    train: `runner.train.train`, which stands above: only what begins a run trains a base model for it.
    Raises: CheckFailed for a model that does not pass, or whose run did not; ConfigError for no such recipe.
    """
    if not isinstance(section, Pretrained) or section.recipe is None:
        return
    home = cache_folder(section.recipe)
    if not (home / "model").is_dir():
        _train_and_export(section.recipe, home, train)
    if section.verify and verified.is_verified(home / "model", "L5") is None:
        _verify(section.base, home)


def _train_and_export(name: str, home: Path, train: Callable[..., Any]) -> None:
    run, console = home / "run", Console(stderr=True, highlight=False)
    console.print(f"training the base model first: {name}", soft_wrap=True)
    train(recipes.load(name), run, resume=is_run(run), console=console)
    trained = load(run)
    export(
        trained.model,
        home / "model",
        side_files=tokenizer_files(trained.tokenizer),
        token_ids={"eos_token_id": list(trained.tokenizer.stop_ids)},
    )


def _verify(source: str, home: Path) -> None:
    """Raises: CheckFailed with the checks that were not passed."""
    data = TokenData.open(home / "run" / "data")
    ids = data.validation.ids[:TEXT_TOKENS]
    text = data.tokenizer.decode(ids[ids != data.tokenizer.separator_id].tolist())
    done = verify_weights(home / "model", text=text)
    if not (done.ok and done.speaks):
        failed = [f"{c.id} {c.title}: got {c.got}, expected {c.expected}" for c in done.checks if not c.ok]
        raise CheckFailed(
            f"the base model {source} does not pass kssm verify-weights: "
            f"{' | '.join(failed) or 'W24 had no text'}. Train it longer or on more text"
        )
