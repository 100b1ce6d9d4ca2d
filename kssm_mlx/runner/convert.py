"""A run or a model written for other tools, whole or in fewer bits, and what the missing bits cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kssm_mlx.checks.core.registry import NotMeasurable
from kssm_mlx.checks.pretrained.subject import Subject
from kssm_mlx.data.tokenizers.huggingface import tokenizer_files
from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.errors import ConfigError
from kssm_mlx.generation.initial_state import save_initial_state
from kssm_mlx.models.adapters import fuse_lora
from kssm_mlx.models.base import LanguageModel, Trained, flatten
from kssm_mlx.models.state_tuning import StateTuned
from kssm_mlx.runner.load import load
from kssm_mlx.weights import export as folders
from kssm_mlx.weights import side_files
from kssm_mlx.weights.quantize import quantize


class Loss(NamedTuple):
    """nats: per token of the text; None where it could not be measured, and why."""

    nats: float | None
    reason: str = ""


class Conversion(NamedTuple):
    """modules: names of what was quantised; bytes and losses before and after."""

    modules: list[str]
    bytes: tuple[int, int]
    losses: tuple[Loss, Loss]


def export(
    source: str | Path,
    folder: str | Path,
    *,
    format: str = "mlx-lm",
    tokenizer: bool = True,
    verify: bool = True,
    on_open: Callable[[Trained], None] | None = None,
) -> Path:
    """Write a run or a model as a folder for mlx-lm or transformers, adapters fused into their base model; in
    the format "state" the learned state of a run as a file, for `kssm generate --state-in`, in "adapters" its
    adapters alone, for mlx-lm.

    verify: see `load`. on_open: is shown what was opened, before it is changed.
    Raises: ConfigError, DataError for what the format or its tokenizer files cannot hold; WeightMismatch,
        CheckpointError for weights that are not good.
    """
    if format == "state":
        return _export_state(source, Path(folder), verify)
    if format == "adapters":
        trained = _open_for_export(source, verify, on_open)
        return folders.export_adapters(trained.model, folder, trained.notes.get("base_digest"))
    trained = _open_for_export(source, verify, on_open)
    fuse_lora(trained.model)
    return _write(trained, folder, format, tokenizer)


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    bits: int,
    mode: str = "affine",
    group_size: int | None = None,
    text: str | None = None,
    tokenizer: bool = True,
    verify: bool = True,
    on_open: Callable[[Trained], None] | None = None,
) -> Conversion:
    """Write a run or a model in fewer bits, as a folder that we and mlx-lm read, scored before and after.

    text: what it is scored on, by default the English that comes with the package. verify, on_open: as in
    `export`.
    Raises: as `export`; ConfigError for settings that do not exist.
    """
    folders.refuse_used(folder)
    trained = _open_for_export(source, verify, on_open)
    model = fuse_lora(trained.model)
    bytes_before, loss_before = _count_bytes(model), _score_text(trained, text)
    modules = quantize(model, bits, mode, group_size)
    # Of the arrays in memory, which are those that are written.
    loss_after = _score_text(trained, text)
    _write(trained, folder, "mlx-lm", tokenizer)
    return Conversion(modules, (bytes_before, _count_bytes(model)), (loss_before, loss_after))


def _open_for_export(source: str | Path, verify: bool, on_open: Callable[[Trained], None] | None) -> Trained:
    trained = load(source, verify=verify)
    if hasattr(trained.model, "graft"):
        raise ConfigError(
            f"{source} is a graft, which other tools have no place for; "
            "its base model can be exported by itself"
        )
    if isinstance(trained.model, StateTuned):
        raise ConfigError(
            f"{source} begins with a learned state, which other tools have no place for; --format state "
            "writes it for kssm generate --state-in, and its base model can be exported by itself"
        )
    if on_open:
        on_open(trained)
    return trained


def _export_state(source: str | Path, file: Path, verify: bool) -> Path:
    """Raises: ConfigError for a source without a learned state, and a file that is there."""
    if file.exists():
        raise ConfigError(f"{file} is in use; write into a new file")
    trained = load(source, verify=verify)
    if not isinstance(trained.model, StateTuned):
        raise ConfigError(
            f'{source} has no learned state; only a run with model.train = "state" or "prompt" has one'
        )
    save_initial_state(file, trained.model, trained.notes["base_digest"])
    return file


def _write(trained: Trained, folder: str | Path, format: str, tokenizer: bool) -> Path:
    written = trained.tokenizer if tokenizer else None
    source = trained.notes.get("path")  # of a model that others wrote: its side files are carried unchanged
    own = source is not None and bool(written) and side_files.has_huggingface_tokenizer(Path(source))
    made = tokenizer_files(written) if written and not own else {}
    beside = side_files.collect_side_files(Path(source), tokenizer=own) if source else {}
    named = side_files.token_ids(Path(source)) if source else {}
    return folders.export(
        trained.model,
        folder,
        format=format,
        side_files={**made, **beside},
        token_ids=_with_end(named, written),
    )


def _with_end(named: dict[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What config.json says of special tokens; where the source names no end, where our generation stops."""
    if "eos_token_id" in named or tokenizer is None or not tokenizer.stop_ids:
        return named
    return {**named, "eos_token_id": list(tokenizer.stop_ids)}


def _score_text(trained: Trained, text: str | None) -> Loss:
    """A fresh Subject each time: it remembers what it has measured."""
    try:
        return Loss(
            Subject(trained.model, tokenizer=trained.tokenizer, text=text).evaluation["nats_per_token"]
        )
    except NotMeasurable as e:
        return Loss(None, str(e))


def _count_bytes(model: LanguageModel) -> int:
    return sum(array.nbytes for array in flatten(model.parameters()).values())
