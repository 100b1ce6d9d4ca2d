"""Wells: an anisotropy that gives a population on a sphere as many directions to settle in as it has wells.

    E(a) = |a|²/2 - (1/σ) log Σ_m exp(σ c_m . a),        a -> a - β ∇E = a + β (Σ_m s_m c_m - a)

with shares s = softmax(σ c_m . a) of the wells c_m, points of the ball. In physics this is a crystal field,
as in clock models, elsewhere a modern Hopfield network. E is a parabola less a convex function, so that it
curves by 1 at most, and a step of β <= 2 never raises it. How many wells are attractors depends on σ |c|²: of
two opposite wells both are above 1, where the centre loses its stability (the mean field of an Ising magnet),
of the six along the axes the centre loses it at 3.

Plain numpy in float64, on the last axis; `ops.ball_wells` is the same step inside the recurrence.

Source: José, Kadanoff, Kirkpatrick & Nelson 1977 for clock models; Ramsauer et al. 2020, arXiv 2008.02217.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SAME = 1e-6  # closer together two fixed points are one


class FixedPoints(NamedTuple):
    """Where a population rests, and whether it comes back after a push. Shapes: points [n, D], stable [n]."""

    points: np.ndarray
    stable: np.ndarray


def shares(a: np.ndarray, wells: np.ndarray, sharpness: float) -> np.ndarray:
    """How much each well draws, in sum 1. Shapes: a [..., D]; wells [M, D] -> [..., M]."""
    score = sharpness * a @ wells.T
    weight = np.exp(score - score.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def energy(a: np.ndarray, wells: np.ndarray, sharpness: float) -> np.ndarray:
    """E(a). Shapes: a [..., D]; wells [M, D] -> [...]."""
    score = sharpness * a @ wells.T
    top = score.max(-1)
    return (a * a).sum(-1) / 2 - (top + np.log(np.exp(score - top[..., None]).sum(-1))) / sharpness


def slope(a: np.ndarray, wells: np.ndarray, sharpness: float) -> np.ndarray:
    """∇E(a) = a - Σ_m s_m c_m. Shapes: [..., D] -> [..., D]."""
    return a - shares(a, wells, sharpness) @ wells


def curvature(a: np.ndarray, wells: np.ndarray, sharpness: float) -> np.ndarray:
    """The Hessian of E, I - σ times the covariance of the wells under the shares. Shapes: a [D] -> [D, D]."""
    share = shares(a, wells, sharpness)
    mean = share @ wells
    return np.eye(a.size) - sharpness * ((share[:, None] * wells).T @ wells - np.outer(mean, mean))


def fixed_points(wells: np.ndarray, sharpness: float, starts: np.ndarray) -> FixedPoints:
    """Where ∇E = 0, by a root finder from many starts. Shapes: wells [M, D]; starts [n, D]."""
    from scipy.optimize import root

    found: list[np.ndarray] = []
    for start in starts:
        solved = root(slope, start, (wells, sharpness), jac=curvature, tol=1e-13)
        known = any(np.linalg.norm(solved.x - other) < SAME for other in found)
        if np.linalg.norm(slope(solved.x, wells, sharpness)) < 1e-10 and not known:
            found.append(solved.x)
    points = np.array(found).reshape(-1, wells.shape[-1])
    stable = [np.linalg.eigvalsh(curvature(a, wells, sharpness)).min() > 0 for a in points]
    return FixedPoints(points, np.array(stable, bool))
