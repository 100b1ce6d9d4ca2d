"""What the clamp experiment concludes from its outcomes: a rule fixed before any run, and what was claimed.

Source: docs/background/allostasis.md#results and #decision-rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kssm_mlx.errors import ConfigError

CONDITIONS = ("control", "constraint", "naive", "mean-preserving")


class Outcome(NamedTuple):
    """One trained condition. A is the norm of the stream before the final norm (S0); A_sig, sigma_sig and
    d_prime are along the deciding direction, margin in logits; free_routing: what of the routing could move.
    """

    condition: str
    seed: int
    skill: float
    nats: float
    accuracy: float
    A: float
    A_norm: float
    sigma2: float
    A_sig: float
    sigma_sig: float
    d_prime: float
    margin: float
    free_routing: float


@dataclass(frozen=True)
class Rule:
    """What was fixed before any run: the least loss of skill under constraint that counts as stress; the
    least ratio of amplitudes that counts as compensation; the least gap between the clamps, and the share of
    the constraint's skill that mean-preserving keeps, that count as dissociation.
    """

    stress: float = 0.10
    compensation: float = 1.5
    dissociation: float = 0.10
    share: float = 0.9


class Decision(NamedTuple):
    """outcome: "undetermined" for fewer than two seeds; "no stress": the clamps mean nothing; "geometry
    wins": skill was lost and amplitude did not rise; "clamp absorbed": it rose, and both clamps were equally
    harmless or harmful; "confirmed". Numbers are means over seeds; low, high: the 95 % interval of the gap.
    Mean-preserving is trained under statistics of the batch and evaluated under others (clamps.py), so a gap
    that is too small may be due to that; "clamp absorbed" is no evidence against the claim.
    """

    outcome: str
    stress: float
    compensation: float
    gap: float
    low: float
    high: float
    share: float


def apply_rule(outcomes: Sequence[Outcome], rule: Rule = Rule()) -> Decision:
    """The verdict over seeds, paired. Raises: ConfigError for a condition without a partner."""
    by = {c: {o.seed: o for o in outcomes if o.condition == c} for c in CONDITIONS}
    seeds = sorted(by["control"])
    if not seeds or any(sorted(found) != seeds for found in by.values()):
        raise ConfigError("every seed needs all four conditions: " + ", ".join(CONDITIONS))
    skill = {c: np.array([by[c][seed].skill for seed in seeds]) for c in CONDITIONS}
    stress = float(np.mean(skill["control"] - skill["constraint"]))
    compensation = max(_growth(by, seeds, quantity) for quantity in ("A_sig", "A"))
    gaps = skill["mean-preserving"] - skill["naive"]
    low, high = _interval(gaps)
    share = float(skill["mean-preserving"].mean() / skill["constraint"].mean())
    numbers = (stress, compensation, float(gaps.mean()), low, high, share)
    return Decision(_outcome(len(seeds), numbers, rule), *numbers)


def _outcome(seeds: int, numbers: tuple[float, ...], rule: Rule) -> str:
    stress, compensation, gap, low, _, share = numbers
    if seeds < 2:
        return "undetermined"
    if not stress >= rule.stress:
        return "no stress"
    if not compensation >= rule.compensation:
        return "geometry wins"
    dissociated = gap >= rule.dissociation and low > 0 and share >= rule.share
    return "confirmed" if dissociated else "clamp absorbed"


def _growth(by: dict, seeds: list[int], quantity: str) -> float:
    """Mean under constraint over mean of the control."""
    under, healthy = (
        np.mean([getattr(by[c][s], quantity) for s in seeds]) for c in ("constraint", "control")
    )
    return float(under / healthy)


def _interval(gaps: np.ndarray) -> tuple[float, float]:
    """95 % of the mean of the paired gaps, by bootstrap over seeds; NaN for one."""
    from scipy.stats import bootstrap

    if gaps.size < 2:
        return float("nan"), float("nan")
    found = bootstrap((gaps,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


class Claimed(NamedTuple):
    """What was expected of a condition, as ranges of accuracy in %, and what its source's own run gave."""

    condition: str
    note: str
    amplitude: str
    observed_accuracy: float
    observed_A: float


STATUS = "claimed by note, not reproduced by its source"
CLAIMED = (
    Claimed("control", "85-95", "11-12", 99.17, 11.47),
    Claimed("constraint", "50-70", "18-25", 88.23, 11.35),
    Claimed("naive", "10-30", "11-12", 84.81, 11.37),
    Claimed("mean-preserving", "45-65", "18-25", 84.08, 10.45),
)
