"""A host trained here, for want of a pretrained one: `host = "recipe:NAME"`.

    ~/.cache/kssm-mlx/hosts/NAME-DIGEST/  run/  model/      ($KSSM_CACHE; DIGEST is that of the recipe)

The recipe is trained once, for every run that names it, and exported. What it became is a host like any
other: judged by all of `kssm verify-weights`, on held-out text of its own data.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rich.console import Console

from kssm_mlx.data.tokenizers.huggingface import tokenizer_files
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import CheckFailed, ConfigError
from kssm_mlx.runner.verify_weights import verify_weights
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.recipe import Host
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.export import export

TEXT_TOKENS = 32768  # of held-out text, four times what L5 scores


def source_of(section: Host) -> str:
    """What is opened as the host: the section's, or the folder of the recipe's model.

    Raises: ConfigError where that has not been trained on this machine.
    """
    if section.recipe is None:
        return section.host
    model = _home(section.recipe) / "model"
    if not model.is_dir():
        raise ConfigError(
            f"the host {section.host} is not on this machine; kssm train on the recipe makes it"
        )
    return str(model)


def grow(section: Host) -> None:
    """Train, export and verify the recipe that a host is to come from, unless that is done.

    Raises: CheckFailed for a model that does not pass, or whose run did not; ConfigError for no such recipe.
    """
    if section.recipe is None:
        return
    home = _home(section.recipe)
    if not (home / "model").is_dir():
        _train(section.recipe, home)
    if section.verify and verified.is_verified(home / "model", "L5") is None:
        _verify(section.host, home)


def _home(name: str) -> Path:
    # As written: an option that a later version adds does not make it another host.
    recipe = recipes.load(name).model_dump(mode="json", exclude={"about"}, exclude_unset=True)
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return verified.store().parent / "hosts" / f"{Path(name).stem}-{digest[:12]}"


def _train(name: str, home: Path) -> None:
    from kssm_mlx.runner.run import load, train  # a run may need another one before it can start

    run, console = home / "run", Console(stderr=True, highlight=False)
    console.print(f"training the host first: {name}", soft_wrap=True)
    train(recipes.load(name), run, resume=(run / "recipe.json").is_file(), console=console)
    trained = load(run)
    export(
        trained.model,
        home / "model",
        tokenizer_files=tokenizer_files(trained.tokenizer),
        end_of_text=trained.tokenizer.separator_id,
    )


def _verify(host: str, home: Path) -> None:
    """Raises: CheckFailed with the checks that were not passed."""
    data = TokenData.open(home / "run" / "data")
    ids = data.validation.ids[:TEXT_TOKENS]
    text = data.tokenizer.decode(ids[ids != data.tokenizer.separator_id])
    done = verify_weights(home / "model", text=text)
    if not (done.ok and done.speaks):
        failed = [f"{c.id} {c.title}: got {c.got}, expected {c.expected}" for c in done.checks if not c.ok]
        raise CheckFailed(
            f"the host {host} does not pass kssm verify-weights: {' | '.join(failed) or 'W24 had no text'}. "
            "Train it longer or on more text"
        )
