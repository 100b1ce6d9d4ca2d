"""The peak of memory and the time of a training step, from steps with few rows, really taken.

Everything between the two passes is a row's own, so the peak is a line in the rows of a micro-batch at a
given length, once the rows outweigh what is allocated whatever their number. Steps with 1, 2, 4, ... rows are
taken until two slopes agree and a quarter of the rows is reached; the last gives the line. A step that
computes the logits in pieces has a line of its own, so none with fewer rows than that is taken.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from kssm_mlx.data.batches import random_batch, track_batch
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.models.base import LanguageModel, flatten
from kssm_mlx.training import losses
from kssm_mlx.training.constraints import Constraints
from kssm_mlx.training.loss_terms import parse_terms
from kssm_mlx.training.recipe import Recipe
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step

AGREE = 0.05  # two slopes that differ by less are one
STEPS = 5
FEW = 4  # up to a quarter of the rows, or the line would reach too far


class StepCost(NamedTuple):
    """rows: of a micro-batch. peak: bytes by MLX's counter, the most of some steps, since MLX allocates ahead
    of what it computes, up to a limit that short operations do not always reach. seconds: the least of them.
    """

    rows: float
    peak: float
    seconds: float


def measure_steps(
    recipe: Recipe,
    model: LanguageModel,
    data: TokenData,
    held: Constraints,
    memory: int | None = None,
    all_rows: bool = False,
) -> tuple[StepCost, ...]:
    """Costs of steps of this recipe with few rows, fewest first; of the recipe's own where it has few.

    memory: bytes that no step may need, by default MLX's limit; twice the rows need at most twice the peak.
    all_rows: a step of the recipe itself is the last, where the line says that it needs half of that at most.
    """
    costs: list[StepCost] = []
    most = mx.get_memory_limit() if memory is None else memory
    whole = recipe.train.batch_size // recipe.train.accumulation
    for rows in _few_rows(recipe, model.args.vocab_size):
        costs.append(measure_step(recipe, model, data, held, rows))
        if (_slopes_agree(costs) and FEW * rows >= whole) or 2 * costs[-1].peak > most:
            break
    if all_rows and costs[-1].rows < whole and 2 * predict_step(costs, recipe.train, 0).peak <= most:
        costs.append(measure_step(recipe, model, data, held, whole))
    return tuple(costs)


def measure_step(
    recipe: Recipe, model: LanguageModel, data: TokenData, held: Constraints, rows: int
) -> StepCost:
    """Steps of this recipe with `rows` rows in a micro-batch, after a first; the model is left as it was.

    The first compiles, and shares its parameters with the model. Two pieces are enough to hold what more do.
    """
    pieces = min(recipe.train.accumulation, 2)
    train = recipe.train.model_copy(update={"batch_size": rows * pieces, "accumulation": pieces})
    step = make_step(
        model,
        train,
        loss=parse_terms(recipe.loss, model.args.vocab_size),
        masks=held.masks or None,
        intervention=held.intervention,
        monitor=recipe.monitor is not None,
    )
    tokens, resets = _draw(train, data)
    others = _active_beside(model)
    state = initial_state(model, train)
    # A state that is handed on has another shape than none, for which the step compiles once more.
    for _ in range(2 if train.hand_off else 1):
        state = _take(step, state, tokens, resets)
    peaks, times = [], []
    for _ in range(STEPS):
        mx.reset_peak_memory()
        began = time.perf_counter()
        state = _take(step, state, tokens, resets)
        times.append(time.perf_counter() - began)
        peaks.append(mx.get_peak_memory() - others)
    return StepCost(rows, max(peaks), min(times))


def predict_step(costs: Sequence[StepCost], train: Train, least: int) -> StepCost:
    """The cost of a step of `train` on the line through the last two of `costs`; never below `least` bytes,
    which of a single one is the other end.

    A busy machine disturbs times more than peaks: more rows never take less, and not more than their share.
    """
    rows, pieces = train.batch_size // train.accumulation, min(train.accumulation, 2)
    last = costs[-1]
    before = costs[-2] if len(costs) > 1 else StepCost(0, least, 0.0)
    far = (rows - last.rows) / (last.rows - before.rows)
    peak = last.peak + far * (last.peak - before.peak)
    slower = far * (last.seconds - before.seconds) if far > 0 else 0.0
    share = max(rows / last.rows, 1.0) * last.seconds
    seconds = min(max(last.seconds + slower, last.seconds), share) * train.accumulation / pieces
    return StepCost(rows, max(peak, least), seconds)


def _take(step, state, tokens, resets):
    state, metrics = step(state, tokens, resets)
    mx.eval(state, metrics)
    return state


def _active_beside(model: LanguageModel) -> int:
    """Bytes that others in this process hold."""
    gc.collect()
    mx.eval(model.parameters())
    mx.synchronize()  # a stream holds the arrays of its last operation a little longer than that takes
    return max(mx.get_active_memory() - sum(a.nbytes for a in flatten(model.parameters()).values()), 0)


def _draw(train: Train, data: TokenData) -> tuple[mx.array, mx.array | None]:
    if train.hand_off:
        tokens, resets = track_batch(data.train, 0, train.batch_size, train.context)
    else:
        tokens, resets = random_batch(data.train, train.seed, 0, train.batch_size, train.context)
    drawn = mx.array(tokens), None if resets is None else mx.array(resets)
    mx.eval(drawn)
    return drawn


def _few_rows(recipe: Recipe, vocabulary: int) -> Iterator[int]:
    """1, 2, 4, ... up to the rows of a micro-batch, or from where its logits are computed in pieces."""
    train = recipe.train
    whole, T = train.batch_size // train.accumulation, train.context
    together = losses.chunk_for(whole, T, vocabulary) is None
    rows = 1 if together else losses.MOST_LOGITS // (vocabulary * T) + 1
    while rows < whole:
        yield rows
        rows *= 2
    yield whole


def _slopes_agree(costs: Sequence[StepCost]) -> bool:
    if len(costs) < 3:
        return False
    a, b, c = costs[-3:]
    first, second = (b.peak - a.peak) / (b.rows - a.rows), (c.peak - b.peak) / (c.rows - b.rows)
    return abs(second - first) <= AGREE * abs(second)
