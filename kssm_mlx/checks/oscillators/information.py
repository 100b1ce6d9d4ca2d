"""What do the oscillators know? R against the token and against noise, and whether the oscillators differ."""

from __future__ import annotations

import numpy as np

from kssm_mlx.checks.core.conditions import blocks_with, read_passage, run_arm
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict

TEXTS, NOISES = 6, 2
DIGITS = 1e-3  # what of R can be told apart: the third digit
RECODED, RATIO = 0.95, 2.0
APART, ONE, DIMENSIONS = 1e-3, 1.5, 8


@check(
    "C22",
    level="S",
    title="R carries information",
    source="docs/background/k-ssm.md#what-r-knows",
    needs_training=True,
)
def coherence_informs(ctx: Context) -> Check:
    """R at the same place of 6 texts of 2 rows, each under 2 draws of the model's noise. Ratio: the
    variance over texts under equal noise / (the variance over noise on equal text + 1e-6), least over
    blocks, the mean over groups and places each. eta^2: the share of R's variance that the current token
    explains, corrected for the number of tokens (epsilon^2), median over the groups of a block, largest
    over blocks.

    Threshold: fail below a ratio of 2: R says more about the draw than about the text; 1e-6 is its third
    digit, for models without noise. Warn above an eta^2 of 0.95: R is the current token written
    differently.
    Caught: v3, whose R was the same for every token (common shift); v1, whose R takes one value per
    character (eta^2 = 1).
    Sabotage: a constant R; R of noise; R as a table of the current token.
    """
    ctx.need("model")
    texts = [read_passage(ctx, rows=2, stream=i) for i in range(TEXTS)]
    R = _draws(ctx, texts, ("R",), NOISES)
    tokens = np.stack([np.array(t) for t in texts])
    ratio = {b: float(_ratio(r)) for b, r in R.items()}
    eta = {b: float(np.median(_explained_variance(r[:, 0], tokens))) for b, r in R.items()}
    low, high = (pick(d, key=lambda b: np.nan_to_num(d[b])) for pick, d in ((min, ratio), (max, eta)))
    informative = all(r >= RATIO for r in ratio.values())
    return verdict(
        "C22",
        "fail" if not informative else "warn" if eta[high] > RECODED else "pass",
        f"variance over texts {ratio[low]:.3g} x noise (block {low}); the token explains "
        + (f"{eta[high]:.1%} (block {high})" if eta[high] == eta[high] else "nobody knows how much"),
        f">= {RATIO:g} x noise; <= {RECODED:.0%}",
        "R is a function of the current token alone: nothing is carried from token to token"
        if informative
        else "R is the same whatever is read: a common shift only turns phases, drive each by itself",
        ratio={str(b): v for b, v in ratio.items()},
        eta2={str(b): v for b, v in eta.items()},
    )


def _draws(ctx: Context, texts: list, names: tuple[str, ...], noises: int) -> dict[int, np.ndarray]:
    """Block -> the first of the quantities that the trace has, [texts, noises, B, T, ...].

    Raises: NotMeasurable where it has none of them.
    """
    arms = [[run_arm(ctx.model, t, ctx.seed + s).trace for s in range(noises)] for t in texts]
    name = next((n for n in names if blocks_with(arms[0][0], n)), None)
    if name is None:
        raise NotMeasurable(f'the trace has no "block00/{names[-1]}"')
    drawn = [[blocks_with(trace, name) for trace in row] for row in arms]
    return {b: np.array([[of[b] for of in row] for row in drawn], np.float64) for b in drawn[0][0]}


def _ratio(R: np.ndarray) -> float:
    """Variance over texts (axis 0) by variance over noise (axis 1). Shapes: R [texts, noises, ...]."""
    return R.var(axis=0, ddof=1).mean() / (R.var(axis=1, ddof=1).mean() + DIGITS**2)


def _explained_variance(R: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """epsilon^2 of each group; NaN where too few tokens occur twice. Shapes: R [texts, B, T, groups], tokens
    [texts, B, T] -> [groups].
    """
    R = R.reshape(tokens.size, -1)
    _, index, counts = np.unique(tokens.ravel(), return_inverse=True, return_counts=True)
    N, k = len(R), len(counts)
    total = R.var(axis=0, ddof=1)
    if 2 * k > N or not np.all(total > 0):
        return np.full(total.shape, np.nan)
    means = np.stack([np.bincount(index, column) for column in R.T], axis=1) / counts[:, None]
    within = np.sum((R - means[index]) ** 2, axis=0) / (N - k)
    return 1 - within / total


@check(
    "C23",
    level="P",
    title="the oscillators differ",
    source="docs/background/k-ssm.md#one-shift-for-all-oscillators",
    passes=6,
)
def oscillators_differ(ctx: Context) -> Check:
    """The phases of a block (theta, or psi of its populations where it has no theta) at the same place of 6
    texts of 2 rows, under equal noise. Apart: circular standard deviation over texts of theta_i - theta_1,
    mean over places and i, in radians. Dimensions: participation ratio (sum of eigenvalues)^2 / sum of
    their squares of the covariance of exp(i theta). The least block counts.

    Threshold: apart > 1e-3, and dimensions >= min(8, N / 8) of N oscillators, below which it warns, and below
    half of that or 1.5 it fails: the block passes on one number or two however wide it is. A common shift has
    1.0 to 1.5; a fresh K-SSM has 1.4 radians and a third of N dimensions; 16 phases that pull each other with
    K = 2 have 1.9 to 3.
    Caught: v3, one common shift for all 192 oscillators: their differences never change.
    Sabotage: phases that share one shift.
    """
    ctx.need("model")
    texts = [read_passage(ctx, rows=2, stream=i) for i in range(TEXTS)]
    theta = {b: drawn[:, 0] for b, drawn in _draws(ctx, texts, ("theta", "psi"), 1).items()}
    if all(t.shape[-1] < 2 for t in theta.values()):
        raise NotMeasurable("the blocks have one oscillator each")
    apart = {b: float(_spread_of_phases(t)) for b, t in theta.items()}
    rank = {b: participation(np.exp(1j * t).reshape(-1, t.shape[-1])) for b, t in theta.items()}
    needed = {b: min(DIMENSIONS, t.shape[-1] / 8) for b, t in theta.items()}
    least = min(rank, key=lambda b: (apart[b] > APART, np.nan_to_num(rank[b] / needed[b])))
    fewest = max(ONE, needed[least] / 2)
    alike = not (apart[least] > APART and rank[least] >= fewest)
    return verdict(
        "C23",
        "fail" if alike else "warn" if rank[least] < needed[least] else "pass",
        f"apart {apart[least]:.1e} rad, {rank[least]:.1f} dimensions (block {least})",
        f"apart > {APART:g} rad, >= {needed[least]:g} dimensions (fails below {fewest:g})",
        "all oscillators get the same drive: give each one its own projection of the input"
        if alike
        else "the oscillators move in a few directions together: weaken their coupling, or use fewer",
        apart={str(b): v for b, v in apart.items()},
        dimensions={str(b): v for b, v in rank.items()},
    )


def _spread_of_phases(theta: np.ndarray) -> float:
    """Circular standard deviation over axis 0 of theta_i - theta_1. Shapes: [texts, ..., N]."""
    difference = theta[..., 1:] - theta[..., :1]
    agreement = np.abs(np.exp(1j * difference).mean(axis=0))
    return np.sqrt(-2 * np.log(np.clip(agreement, 1e-300, 1.0))).mean()


def participation(z: np.ndarray) -> float:
    """How many directions a cloud fills: (sum l)^2 / sum l^2 of its covariance; 0 for one that is a point up
    to rounding. Shapes: z [samples, N].
    """
    centred = z - z.mean(axis=0)
    covariance = centred.conj().T @ centred / len(z)
    total = np.trace(covariance).real
    return float(total**2 / np.sum(np.abs(covariance) ** 2)) if not total < 1e-10 * z.shape[1] else 0.0
