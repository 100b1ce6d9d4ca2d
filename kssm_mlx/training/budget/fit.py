"""Whether a run fits: refused where a lower bound does not, warned of where a prediction does not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.training.budget.measured import StepCost, predict_step
from kssm_mlx.training.budget.sums import FP32, Sums, kept_checkpoints
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.recipe_sections import Pretrained

BYTES_IN_FEW_BITS = 4.5 / 8  # of a weight: 4 bits, and what a group of 64 shares
IN_MEMORY = 'model.train="qlora" (under a graft "frozen") and model.quantize={ bits = 4 }'
CONVERTED = (
    'let kssm convert write it in 4 bits on a machine that holds it, and take that with model.train="qlora"'
)
SMALLER = "take a smaller one, or a machine with more memory"


def there_is_memory() -> int:
    """Bytes that MLX takes before it makes whoever asks wait: most of the memory of this machine."""
    return mx.get_memory_limit()


def there_is_disk(folder: Path) -> int:
    """Bytes that checkpoints in `folder` may take: what is free, and what those there take already."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    own = sum(p.stat().st_size for p in folder.glob("checkpoints/*/*") if p.is_file())
    return shutil.disk_usage(there).free + own


def refuse_beyond_memory(sums: Sums, recipe: Recipe, there: int) -> None:
    """Raises: ConfigError when weights, optimizer and gradients alone are more than `there` bytes."""
    if sums.least > there:
        raise ConfigError(
            f"this run needs at least {show_bytes(sums.least)} of memory for weights, optimizer and "
            f"gradients of {sums.trained:,} trained parameters, and there is {show_bytes(there)}; "
            f"{_lighter_training(sums, recipe, there)}"
        )


def refuse_large_base(name: str, stored: int, weights: int, there: int) -> None:
    """Before a base model is read. stored: bytes of its tensors; weights: how many they hold.

    Raises: ConfigError when it alone is more than `there` bytes.
    """
    if stored > there:
        few = BYTES_IN_FEW_BITS * weights
        advice = f"in 4 bits it takes about {show_bytes(few)}: {CONVERTED}" if few <= there else SMALLER
        raise ConfigError(
            f"the base model {name} takes {show_bytes(stored)} of memory as it is stored, and there is "
            f"{show_bytes(there)}; {advice}"
        )


def refuse_beyond_disk(sums: Sums, recipe: Recipe, there: int) -> None:
    """Raises: ConfigError when the checkpoints that are kept together are more than `there` bytes."""
    count, _ = kept_checkpoints(recipe)
    if (needed := count * sums.checkpoint) > there:
        fits = there // sums.checkpoint
        advice = f"save.keep={fits}, or another disk" if fits else "another disk, with --out"
        raise ConfigError(
            f"this run keeps {count} checkpoints of {show_bytes(sums.checkpoint)}, {show_bytes(needed)} on "
            f"disk, and there is {show_bytes(there)}; what would fit: {advice}"
        )


def warn_beyond_memory(
    sums: Sums, recipe: Recipe, costs: Sequence[StepCost], there: int, checkpoints: bool
) -> str:
    """One line where the predicted peak is more than `there` bytes; "" where it fits.

    checkpoints: whether the model can compute its blocks again.
    """
    peak = predict_step(costs, recipe.train, sums.least).peak
    if peak <= there:
        return ""
    return (
        f"warning: the predicted peak is {show_bytes(peak)}, and there is {show_bytes(there)}; "
        f"what would fit: {_smaller_pieces(sums, recipe, costs, there, checkpoints)}"
    )


def _lighter_training(sums: Sums, recipe: Recipe, there: int) -> str:
    """What to do where the sums do not fit; a smaller batch changes nothing about them."""
    section = recipe.model
    if isinstance(section, Pretrained) and section.train == "full" and sums.weights < there:
        return 'what would fit: model.train="lora", which trains adapters alone'
    if (few := _saved_by_few_bits(sums, recipe)) and sums.least - few <= there:
        return f"what would fit: {IN_MEMORY if sums.weights <= there else CONVERTED}"
    kind = "another base model" if isinstance(section, Pretrained) else "a smaller model.size"
    return f"a smaller batch changes nothing; take {kind}, or a machine with more memory"


def _smaller_pieces(
    sums: Sums, recipe: Recipe, costs: Sequence[StepCost], there: int, checkpoints: bool
) -> str:
    train = recipe.train
    for pieces in range(train.accumulation + 1, train.batch_size + 1):
        smaller = train.model_copy(update={"accumulation": pieces})
        if train.batch_size % pieces == 0 and predict_step(costs, smaller, sums.least).peak <= there:
            return f"train.accumulation={pieces}, micro-batches of {train.batch_size // pieces} rows"
    if checkpoints and not train.checkpoint_blocks:
        return "perhaps train.checkpoint_blocks=true, which kssm estimate measures"
    few = _saved_by_few_bits(sums, recipe)
    smallest = train.model_copy(update={"accumulation": train.batch_size})
    if few and predict_step(costs, smallest, sums.least).peak - few <= there:
        return f"perhaps {IN_MEMORY}, which kssm estimate measures"
    if isinstance(recipe.model, Pretrained) and recipe.model.train == "full":
        return 'perhaps model.train="lora", which kssm estimate measures'
    return "a shorter train.context or a smaller model"


def _saved_by_few_bits(sums: Sums, recipe: Recipe) -> float:
    """Bytes that a frozen base model takes less in 4 bits; 0 where it is trained, or is quantised already."""
    section = recipe.model
    if not isinstance(section, Pretrained) or section.train == "full" or section.quantize:
        return 0.0
    return max(0.0, sums.weights - FP32 * sums.trained - BYTES_IN_FEW_BITS * sums.frozen)


def show_bytes(n: float) -> str:
    """12,345,678 -> "12.3 MB"; powers of ten, as MLX's users count."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:,.3g} {unit}" if n < 1000 * size else f"{n / size:,.0f} {unit}"
    return f"{n / 1e3:,.3g} kB"
