"""Thresholds with two sides: where a number is good, where it is doubtful and where it has failed.

    ENTROPY = Band(low=0.1, warn_low=0.3)         below 0.1 fails, below 0.3 warns
    banded("D6", {"block 0": 0.2}, ENTROPY, "...")

A threshold must not grow with the model, so what is compared is normalised first: an entropy by ln n, a norm
to a `root_mean_square`, a deviation by the spread of the logits (`probes.logit_deviation`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kssm_mlx.checks.core.registry import Check, Verdict, verdict

RANK = ("pass", "warn", "fail")


@dataclass(frozen=True)
class Band:
    """Fails below `low` and above `high`, warns below `warn_low` and above `warn_high`; edges are inside.

    Raises: ValueError for edges in an order in which something could never warn or pass.
    """

    low: float = -math.inf
    high: float = math.inf
    warn_low: float | None = None
    warn_high: float | None = None

    def __post_init__(self):
        edges = [self.low, self._inner_low, self._inner_high, self.high]
        if edges != sorted(edges) or not all(e == e for e in edges):
            raise ValueError(f"the edges of a band rise (fail, warn, warn, fail), got {edges}")

    @property
    def _inner_low(self) -> float:
        return self.low if self.warn_low is None else self.warn_low

    @property
    def _inner_high(self) -> float:
        return self.high if self.warn_high is None else self.warn_high

    def judge(self, value: float) -> Verdict:
        """Where a number lies; one that is not finite lies nowhere, so it has failed."""
        if not (math.isfinite(value) and self.low <= value <= self.high):
            return "fail"
        return "pass" if self._inner_low <= value <= self._inner_high else "warn"

    def worst(self, measured: Mapping[str, float]) -> str:
        """The name of the number with the worst verdict; among equals the one farthest out."""
        return max(measured, key=lambda name: self._rank_badness(measured[name]))

    def _rank_badness(self, value: float) -> tuple[int, float]:
        if not math.isfinite(value):
            return len(RANK), 0.0
        beyond = [edge for edge in (self._inner_low - value, value - self._inner_high) if math.isfinite(edge)]
        return RANK.index(self.judge(value)), max(beyond, default=0.0)

    def __str__(self) -> str:
        """ ">= 0.1 (warns below 0.3)", as tables show it."""
        bounds = [
            f"{sign} {edge:g}" for sign, edge in ((">=", self.low), ("<=", self.high)) if math.isfinite(edge)
        ]
        warns = [f"below {self.warn_low:g}"] if self.warn_low is not None else []
        warns += [f"above {self.warn_high:g}"] if self.warn_high is not None else []
        return " and ".join(bounds) + (f" (warns {' and '.join(warns)})" if warns else "")


def judge_by_band(id: str, measured: Mapping[str, float], band: Band, fix: str, **numbers: Any) -> Check:
    """The verdict "every measured number lies in the band", naming the worst one."""
    name = band.worst(measured)
    got = f"{measured[name]:.3g} ({name})"
    return verdict(id, band.judge(measured[name]), got, str(band), fix, measured=dict(measured), **numbers)


def root_mean_square(array: Any) -> float:
    """Root mean square in float64: a norm that does not grow with the number of elements."""
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))
