"""Layer L3: which numbers no trained model has (W13 to W18), and which no training has touched (W19)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median_high, median_low

import numpy as np

from kssm_mlx.weights.audit.findings import Finding, list_some
from kssm_mlx.weights.audit.tensor_stats import Summary
from kssm_mlx.weights.io.tensors import FLOATS
from kssm_mlx.weights.naming.name_map import kind

FAR = 1e-3  # of its kind, or of a matrix that passes signals on: a thousand times too small or too large
ROW = 1e-3  # of the larger rows of an embedding: never trained
RANDOM = 1.05  # edge of a matrix without structure; 0.97 ± 0.03 at 64 x 64, closer to 1 when larger

# Our suffix -> the range outside of which the dynamics are broken, and what the number does.
DYNAMICS = {
    ".A_log": (-12.0, 12.0, "A = -exp(A_log)"),
    ".dt_proj.bias": (-50.0, 50.0, "the step size is its softplus"),
    ".dt_bias": (-50.0, 50.0, "the step size is its softplus"),
    ".time_decay": (-30.0, 20.0, "the decay is exp(-exp(time_decay))"),
    ".time_first": (-200.0, 200.0, "the current token weighs exp(time_first)"),
    ".w_lora.lora.2.bias": (-100.0, 100.0, "the decay is exp(-0.6 sigmoid)"),
    ".log_gamma": (-25.0, 12.0, "the width is exp(log_gamma)"),
    ".omega": (-1e3, 1e3, "the natural frequency"),
}
PUBLIC_BUG = "such weights train and generate nonsense quietly; get them from another source"


@dataclass(frozen=True)
class Weights:
    """What the rules look at. summaries and digests by name in the files; ours: that name -> our parameter.

    run: the weights come from a run of ours, whose manifest vouches for them: what looks untrained may be.
    """

    summaries: Mapping[str, Summary]
    digests: Mapping[str, str]
    ours: Mapping[str, str]
    run: bool = False

    def __iter__(self) -> Iterator[tuple[str, str, Summary]]:
        for name, summary in self.summaries.items():
            yield name, self.ours.get(name, name), summary


def judge(weights: Weights) -> list[Finding]:
    """The findings W13 to W19. In a run of ours only what no step of training can give is a failure."""
    found = [finding for rule in RULES for finding in rule(weights)]
    hard = ("W13", "W17") if weights.run else ()
    return [f if not weights.run or f.check in hard else replace(f, warning=True) for f in found]


def finite(weights: Weights) -> list[Finding]:
    bad = [f"{n} ({s.nans:,} NaN, {s.infinities:,} Inf)" for n, _, s in weights if s.nans or s.infinities]
    return [Finding("W13", list_some(bad))] if bad else []


def constant(weights: Weights) -> list[Finding]:
    """Zeros where a factor belongs, and matrices of one value; a bias may be zero."""
    zero = [n for n, ours, s in weights if s.zero and not is_bias(ours)]
    equal = [
        f"{n} (all {s.low:g})" for n, ours, s in weights if s.constant and not s.zero and is_weight(ours, s)
    ]
    odd = [
        n
        for n, ours, s in weights
        if s.constant and not s.fresh and (is_bias(ours) or not is_weight(ours, s))
    ]
    odd = [n for n in odd if n not in zero]
    found = []
    if zero:
        found.append(Finding("W14", f"{len(zero)} all zero: {list_some(zero)}", PUBLIC_BUG))
    if equal:
        found.append(Finding("W14", f"{len(equal)} of one value: {list_some(equal)}", PUBLIC_BUG))
    if odd:
        fix = "harmless in a bias; compare with another source otherwise"
        found.append(Finding("W14", f"{len(odd)} vectors of one value: {list_some(odd)}", fix, warning=True))
    return found


def find_duplicates(weights: Weights) -> list[Finding]:
    """Two weights with the same bytes; an embedding and an equal head are only a tie nobody declared."""
    groups = defaultdict(list)
    for name, ours, s in weights:
        if is_weight(ours, s) and not s.constant:
            groups[weights.digests[name]].append((name, ours))
    same = [group for group in groups.values() if len(group) > 1]
    ties = [
        g
        for g in same
        if len(g) == 2 and any(is_embedding(o) for _, o in g) and any(is_head(o) for _, o in g)
    ]
    copies = [" = ".join(n for n, _ in g) for g in same if g not in ties]
    found = [Finding("W15", list_some(copies))] if copies else []
    fix = "harmless; the configuration could tie them and save the space"
    return found + [Finding("W15", " = ".join(n for n, _ in g), fix, warning=True) for g in ties]


def scale(weights: Weights) -> list[Finding]:
    """Far from its kind in the other blocks, or so far from passing signals on that all may be broken."""
    kinds = defaultdict(dict)
    for name, ours, s in weights:
        passes_signals = is_weight(ours, s) and not is_embedding(ours)
        if (passes_signals or ours.endswith(".scales")) and not s.zero and not s.constant:
            # Packed numbers are no weights: a conversion may quantise one block, or one with another mode.
            kinds[kind(name), s.dtype if s.dtype not in FLOATS else "float"][name] = s
    wrong = []
    for group in kinds.values():
        sizes = sorted(s.rms for s in group.values())
        usual = median_low(sizes), median_high(sizes)
        for name, s in group.items():
            wrong += _scale(name, s, *usual)
    return [Finding("W16", list_some(wrong, 2), PUBLIC_BUG)] if wrong else []


def _scale(name: str, s: Summary, low: float, high: float) -> list[str]:
    odd = s.rms < FAR * high or s.rms * FAR > low
    # Of two, neither is usual: the odd one is the one that also passes signals badly.
    if odd and (low == high or not 0.03 < s.natural_scale < 30):
        return [f"{name} has rms {s.rms:.1e}, its kind {low if s.rms > high else high:.1e}"]
    if s.dtype in FLOATS and not name.endswith(".scales") and not FAR < s.natural_scale < 1 / FAR:
        return [f"{name} has rms {s.rms:.1e}, {s.natural_scale:.0e} of what passes signals on"]
    return []


def dynamics(weights: Weights) -> list[Finding]:
    """Decays, step sizes and frequencies in the range in which they mean something in float32."""
    wrong = []
    for name, ours, s in weights:
        for suffix, (low, high, meaning) in DYNAMICS.items():
            if ours.endswith(suffix) and not (low <= s.low and s.high <= high) and not s.nans:
                wrong.append(f"{name} in [{s.low:.3g}, {s.high:.3g}], allowed [{low:g}, {high:g}]: {meaning}")
    fix = "is it stored as its logarithm, as the architecture expects? compare with another source"
    return [Finding("W17", list_some(wrong, 2), fix)] if wrong else []


def embedding_rows(weights: Weights) -> list[Finding]:
    """Rows that are tiny beside the larger ones: tokens that training never met."""
    found = []
    for name, _, s in weights:
        if s.rows is None or s.zero or s.nans or s.infinities:
            continue
        tiny = int((s.rows < ROW * np.quantile(s.rows, 0.9)).sum())
        share = tiny / len(s.rows)
        fix = "a padded vocabulary has a few; many mean a damaged file or an untrained model"
        if share > 0.01:
            got = f"{tiny:,} of {len(s.rows):,} rows of {name} are a thousand times smaller than the others"
            found.append(Finding("W18", got, fix, warning=share <= 0.5))
    return found


def find_untrained(weights: Weights) -> list[Finding]:
    """Warnings; only L5 can judge. Kinds of vector that equal their initial value in every block, matrices
    whose largest singular value is that of a random one.
    """
    kinds = defaultdict(list)
    for name, ours, s in weights:
        if not is_weight(ours, s):
            kinds[kind(name)].append(s.fresh)
    fresh = [k for k, all_fresh in kinds.items() if all(all_fresh)]
    random = [n for n, _, s in weights if s.edge is not None and s.edge < RANDOM]
    measured = sum(s.edge is not None for _, _, s in weights)
    fix = "run the behavioural checks (without --quick), which tell a trained model from a random one"
    found = []
    if random:
        got = f"{len(random)} of {measured} matrices have the spectrum of a random one: {list_some(random)}"
        found.append(Finding("W19", got, fix, warning=True))
    if fresh:
        got = f"{len(fresh)} kinds of vector have their initial value in every block: {list_some(fresh)}"
        found.append(Finding("W19", got, fix, warning=True))
    return found


RULES: tuple[Callable[[Weights], list[Finding]], ...] = (
    finite,
    constant,
    find_duplicates,
    scale,
    dynamics,
    embedding_rows,
    find_untrained,
)


def is_weight(ours: str, s: Summary) -> bool:
    """A matrix that signals pass through: `....weight` (`conv_weight`) with at least two dimensions."""
    return ours.endswith("weight") and s.is_matrix


def is_bias(ours: str) -> bool:
    return ours.endswith(("bias", "biases"))


def is_embedding(ours: str) -> bool:
    return "embedding" in ours


def is_head(ours: str) -> bool:
    return ours.split(".")[0] in ("lm_head", "head")


def is_small(size: int) -> bool:
    """Small enough to be compared with a fresh initialisation without a second model in memory."""
    return size <= math.prod((1 << 10, 1 << 10))
