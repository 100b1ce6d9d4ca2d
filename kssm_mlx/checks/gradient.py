"""Does the loss reach every parameter, and did training move them?"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kssm_mlx.checks.base import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.checks.probes import cross_entropy, mode, probe_length, random_tokens, to_numpy, vocabulary
from kssm_mlx.models.base import with_parameters

BATCHES, ROWS, BLOCKS = 5, 4, 64


@check("C7", level="P", title="the loss reaches every parameter", source="liminal.md C7", passes=15)
def reachability(ctx: Context) -> Check:
    """max |∂CE/∂w| over 5 small batches of random tokens, from cross-entropy alone, in training mode, for
    each trainable tensor and each of up to 64 consecutive blocks of its rows (first axis; of an embedding
    or a head, the rows of the ids that occurred). Between the batches a throw-away copy moves by 1e-3
    against the sign of the gradient, so that projections that start at zero do not hide what lies behind
    them.

    Threshold: > 1e-10, far below any useful gradient and far above none: an unread row gets exactly 0.
    Caught: the coupling of v1, the aggregator of v2, rows i and j of v3, every U, tone and EOS term that
    was a Python float, and all of Phase-RWKV.
    Sabotage: a parameter that nothing reads; two of ten rows of a projection that nothing reads.
    """
    ctx.need("model")
    largest, seen = _largest_gradients(ctx)
    V = vocabulary(ctx.model)
    rows = {name: _row_blocks(g[seen] if g.shape[:1] == (V,) else g) for name, g in largest.items()}
    dead = [_name(name, blocks) for name, blocks in rows.items() if not all(b > 1e-10 for b in blocks)]
    weakest = min(rows, key=lambda name: np.nan_to_num(min(rows[name]), nan=-1.0))
    return verdict(
        "C7",
        not dead,
        f"no gradient in {', '.join(dead[:4])}{' ...' if len(dead) > 4 else ''}"
        if dead
        else f"weakest of {len(rows)} tensors {weakest}: {min(rows[weakest]):.1e}",
        "max |gradient| > 1e-10 in every tensor and row block",
        "remove what nothing reads, or connect it: a Python float or a saturated clamp passes no gradient",
        dead=dead,
        weakest=weakest,
    )


def _largest_gradients(ctx: Context) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Per tensor the elementwise max |gradient| over the batches, and the ids that occurred as inputs."""
    model, length = ctx.model, min(probe_length(ctx), 64)
    gradient = mx.grad(lambda p, batch: with_parameters(model, p, lambda: cross_entropy(model, batch)))
    parameters, largest, ids = model.trainable_parameters(), {}, []
    with mode(model, True):
        for i in range(BATCHES):
            tokens = random_tokens(ctx, ROWS, length + 1, stream=70 + i)
            flat = nn.utils.tree_flatten(gradient(parameters, mx.array(tokens)))
            moved = dict(nn.utils.tree_flatten(parameters))
            parameters = nn.utils.tree_unflatten([(n, moved[n] - 1e-3 * mx.sign(g)) for n, g in flat])
            mx.eval(parameters)
            for name, g in flat:
                largest[name] = np.maximum(largest.get(name, 0.0), np.abs(to_numpy(g)))
            ids.append(tokens[:, :-1])
    return largest, np.unique(ids)


def _row_blocks(g: np.ndarray) -> list[float]:
    """max of each of up to 64 consecutive blocks of rows of |gradient|."""
    rows = g.reshape(g.shape[0], -1).max(axis=1) if g.ndim else g.reshape(1)
    return [float(block.max()) for block in np.array_split(rows, min(BLOCKS, len(rows)))]


def _name(tensor: str, blocks: list[float]) -> str:
    """`mixer.weight`, or `mixer.weight (rows 8-9 of 10 blocks)` where only a part is dead."""
    dead = [i for i, b in enumerate(blocks) if not b > 1e-10]
    return tensor if len(dead) == len(blocks) else f"{tensor} (row block {dead[0]} of {len(blocks)})"


@check("C8", level="S", title="training moved every weight", source="liminal.md C8")
def weights_moved(ctx: Context) -> Check:
    """For each trainable tensor ‖w - w₀‖ / ‖w₀‖ against the parameters before step 1, once 20 steps are done;
    and whether the optimiser's saved state holds a non-zero tensor.

    Threshold: > 1e-6 in every tensor: one AdamW step at a learning rate of 1e-5 already moves more.
    Caught: Phase-RWKV Attempt 3: byte-identical weights at steps 300 to 500, an optimiser without state.
    Sabotage: a frozen tensor; an optimiser file of zeros.
    """
    ctx.need("model", "initial")
    if ctx.history is not None and ctx.step < 20:
        raise NotMeasurable(f"{ctx.step} steps done, 20 needed")
    now = dict(nn.utils.tree_flatten(ctx.model.trainable_parameters()))
    missing = sorted(set(now) ^ set(ctx.initial))
    moved = {n: _relative_change(now[n], ctx.initial[n]) for n in now if n in ctx.initial}
    still = [n for n, change in moved.items() if not change > 1e-6] + missing
    optimiser = _optimiser_moments(ctx.run_folder)
    least = min(moved, key=moved.get)
    return verdict(
        "C8",
        not still and optimiser != 0,
        f"{len(still)} of {len(now)} tensors did not move: {', '.join(still[:4])}"
        if still
        else f"least moved {least}: {moved[least]:.1e}"
        + ("; optimiser state empty" if optimiser == 0 else ""),
        "every tensor moves by > 1e-6" + ("" if optimiser is None else "; optimiser state not empty"),
        "the optimiser does not get these parameters, or gets stale copies of them",
        least=least,
        still=still,
        optimiser_tensors=optimiser,
    )


def _relative_change(now: mx.array, before: mx.array) -> float:
    a, b = to_numpy(now).astype(np.float64), to_numpy(before).astype(np.float64)
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-12))


def _optimiser_moments(folder: Path | None) -> int | None:
    """How many tensors of the latest checkpoint's optimiser are not all zero; None where there is no
    checkpoint.
    """
    files = sorted(Path(folder).glob("checkpoints/step_*/optimizer.safetensors")) if folder else []
    if not files:
        return None
    return sum(bool(mx.any(t != 0)) for t in mx.load(str(files[-1])).values())
