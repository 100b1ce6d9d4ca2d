"""What the results of an experiment allow one to say of each of its claims, by rules fixed beforehand.

The unit is the seed. Arms that share their seeds are compared seed by seed (Student's t of the differences,
and all sign changes of them as a permutation test), others by Welch's t. p-values are two-sided, after Holm
over the claims of the file. "equal" is decided by two one-sided t tests against the smallest difference of
interest. Where the file looks before the last seed, the level is spent in parts, in proportion to the seeds,
and each look has its own part: the sum stays below alpha whatever the looks have in common.

Windows of the text, the units within one run, are told beside it: they say that two sets of weights differ,
not that two arms do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from kssm_mlx.errors import ConfigError, is_among, nearest
from kssm_mlx.experiments.design import Claim, Design
from kssm_mlx.metrics import stats
from kssm_mlx.metrics.stats import ALPHA, Comparison
from kssm_mlx.runs.experiment import Results

Word = Literal["supported", "contradicted", "no difference of interest", "undecided"]
EXACT = 14  # seeds up to which all 2^n changes of sign are tried; above, 9,999 of them drawn


@dataclass(frozen=True)
class Verdict:
    """One claim decided.

    comparison: arm less against, in the metric's units, p after Holm, of "equal" that of its two tests; gaps:
    the differences by seed; permutation, equivalence: p before Holm;
    level: what p was compared with; seeds: those that both arms have; lacking: the runs that there should be;
    windows: the same comparison over the units of single runs, averaged over seeds; None without them.
    """

    claim: Claim
    metric: str
    word: Word
    comparison: Comparison
    gaps: np.ndarray
    equivalence: float
    level: float
    seeds: tuple[int, ...]
    lacking: tuple[str, ...]
    windows: Comparison | None
    paired: bool

    @property
    def permutation(self) -> float:
        """p by all changes of sign of the differences."""
        return permute_signs(self.gaps)


def decide(design: Design, results: Results) -> list[Verdict]:
    """Every claim of the design, on the runs that there are."""
    seeds = _common_seeds(design, results)
    level = level_at(design, seeds)
    asked = [_compare(design, claim, results) for claim in design.claim]
    if _is_unplanned_look(design, results, seeds):
        return asked
    tested = [v.equivalence if v.claim.rule == "equal" else v.comparison.p for v in asked]
    # Over all claims of the file, also those that the reader does not care about: they were asked.
    corrected = stats.holm(tested)
    return [_judge(design, verdict, p, level) for verdict, p in zip(asked, corrected, strict=True)]


def _is_unplanned_look(design: Design, results: Results, seeds: int) -> bool:
    """Whether runs are still to come and nobody said beforehand that the claims are looked at now.

    Runs that their checks stopped do not come: what is left of the experiment is decided without them.
    """
    tried = {(run.arm, run.seed) for run in results.chosen}
    arms = {arm for claim in design.claim for arm in (claim.arm, claim.against) if arm}
    complete = all((arm, seed) in tried for arm in arms for seed in design.run.seeds)
    return not complete and seeds not in design.stop.looks


def level_at(design: Design, seeds: int) -> float:
    """The part of alpha that the look after `seeds` seeds may spend."""
    looks = design.stop.looks or [len(design.run.seeds)]
    last = 0
    for look in looks:
        if seeds <= look:
            return ALPHA * (look - last) / looks[-1]
        last = look
    return ALPHA * (looks[-1] - (looks[-2] if len(looks) > 1 else 0)) / looks[-1]


def may_stop(design: Design, results: Results, seeds: int) -> bool:
    """Whether a planned look after `seeds` seeds decides every claim."""
    if seeds not in design.stop.looks or not design.claim:
        return False
    return all(verdict.word != "undecided" for verdict in decide(design, results))


def metric_of(design: Design, claim: Claim, *, against: bool = False) -> str:
    """The number that a claim is about, or that of what it is compared with."""
    return claim.against_metric if against and claim.against_metric else claim.metric or design.metric.name


def _compare(design: Design, claim: Claim, results: Results) -> Verdict:
    other = claim.against or claim.arm
    metric, theirs = metric_of(design, claim), metric_of(design, claim, against=True)
    ours = _values(results, claim.arm, metric)
    base = dict.fromkeys(ours, claim.value) if claim.value is not None else _values(results, other, theirs)
    # Seeds that both arms have: the same data order and initial draw, whose noise the difference takes out.
    shared = tuple(sorted(ours.keys() & base.keys()))
    paired = bool(shared) or not (ours and base)
    if paired:
        comparison = stats.compare_paired({s: ours[s] for s in shared}, {s: base[s] for s in shared})
        gaps = np.array([ours[s] - base[s] for s in shared])
    else:
        comparison, gaps = stats.compare_unpaired([*ours.values()], [*base.values()]), np.array([])
    smallest = design.metric.smallest if claim.smallest is None else claim.smallest
    return Verdict(
        claim=claim,
        metric=metric,
        word="undecided",
        comparison=comparison,
        gaps=gaps,
        equivalence=equivalence_p(gaps, smallest),
        level=ALPHA,
        seeds=shared,
        lacking=tuple(_find_missing_runs(design, claim, ours, base)),
        windows=None if claim.value is not None else _over_windows(results, claim.arm, other, metric, theirs),
        paired=paired,
    )


def _judge(design: Design, verdict: Verdict, p: float, level: float) -> Verdict:
    """The verdict with its word."""
    claim, found = verdict.claim, verdict.comparison
    smallest = design.metric.smallest if claim.smallest is None else claim.smallest
    if claim.rule == "equal":
        word: Word = "supported" if p < level else "undecided"
        if found.p < level and abs(found.difference) >= smallest > 0:
            word = "contradicted"
        return replace(verdict, word=word, level=level, comparison=replace(found, p=p))
    found = replace(found, p=p)
    word = "undecided"
    if p < level and abs(found.difference) >= smallest:
        rises = found.difference > 0
        wanted = {"higher": rises, "lower": not rises, "different": True}[claim.rule]
        word = "supported" if wanted else "contradicted"
    elif verdict.equivalence < level:
        word = "no difference of interest"
    return replace(verdict, word=word, comparison=found, level=level)


def permute_signs(gaps: np.ndarray) -> float:
    """Two-sided p of the mean of paired differences, by changing their signs; NaN for fewer than two.

    Source: Fisher 1935; `scipy.stats.permutation_test`, all changes of sign where they are few.
    """
    from scipy.stats import permutation_test

    if gaps.size < 2 or not np.any(gaps):
        return math.nan
    count: Any = math.inf if gaps.size <= EXACT else 9999
    found: Any = permutation_test(
        # A report that is made again must say the same p.
        (gaps,),
        np.mean,
        permutation_type="samples",
        n_resamples=count,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def equivalence_p(gaps: np.ndarray, smallest: float) -> float:
    """p of two one-sided t tests that the mean difference lies within ± smallest; NaN where it has no bound.

    Source: Schuirmann 1987.
    """
    from scipy.stats import ttest_1samp

    if gaps.size < 2 or not smallest > 0:
        return math.nan
    if np.ptp(gaps) <= stats.ROUNDING * np.abs(gaps).max():  # every seed the same: no spread to test against
        return math.nan if np.any(gaps) else 0.0
    above: Any = ttest_1samp(gaps, -smallest, alternative="greater")
    below: Any = ttest_1samp(gaps, smallest, alternative="less")
    return float(max(above.pvalue, below.pvalue))


def _over_windows(results: Results, arm: str, other: str, metric: str, theirs: str) -> Comparison | None:
    """The units of runs with the same seed, paired, each averaged over the seeds."""
    ours, base = (_units(results, name, m) for name, m in ((arm, metric), (other, theirs)))
    # Windows of unlike number are of unlike texts, and have no pairs.
    seeds = [s for s in ours if s in base and len(ours[s]) == len(base[s]) > 1]
    if not seeds:
        return None
    a, b = (np.mean([side[s] for s in seeds], axis=0) for side in (ours, base))
    return stats.compare_paired(dict(enumerate(a)), dict(enumerate(b)))


def _values(results: Results, arm: str, metric: str) -> dict[int, float]:
    """Seed -> value of the runs of an arm that have a finite one."""
    found = {run.seed: run.metrics.get(metric) for run in results.chosen if run.arm == arm and not run.failed}
    return {seed: float(x) for seed, x in found.items() if x is not None and math.isfinite(x)}


def _units(results: Results, arm: str, metric: str) -> dict[int, Sequence[float]]:
    return {
        run.seed: run.units[metric]
        for run in results.chosen
        if run.arm == arm and not run.failed and run.units.get(metric)
    }


def _find_missing_runs(design: Design, claim: Claim, ours: dict, base: dict) -> Iterator[str]:
    """Of each arm, such as "mamba seeds 3, 4"."""
    sides = {claim.arm: ours}
    if claim.against:
        sides.setdefault(claim.against, base)
    for arm, known in sides.items():
        if seeds := [str(seed) for seed in design.run.seeds if seed not in known]:
            yield f"{arm} seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"


def _common_seeds(design: Design, results: Results) -> int:
    """How many seeds every arm that a claim is about has."""
    arms = {arm for claim in design.claim for arm in (claim.arm, claim.against) if arm}
    by_arm = [{run.seed for run in results.chosen if run.arm == arm} for arm in arms]
    return len(set.intersection(*by_arm)) if by_arm else 0


def require_known_metrics(design: Design, known: Sequence[str]) -> None:
    """Raises: ConfigError for a claim, or a [metric], about a number that the protocol does not measure.

    known: names, and patterns such as "skill_*".
    """
    asked = {design.metric.name}
    for claim in design.claim:
        asked |= {metric_of(design, claim), metric_of(design, claim, against=True)}
    for name in sorted(asked):
        if not is_among(name, known):
            raise ConfigError(
                f"nobody measures {name!r}: protocol {design.run.protocol!r} gives {', '.join(known)}"
                f"{nearest(name, known)}"
            )
