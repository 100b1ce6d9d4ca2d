"""How far states that a task tells apart have blurred into each other.

An affine recurrence that keeps its states apart cannot correct what it has drifted by in the directions that
separate them, so errors add up there until a reader takes one state for another.

Source: docs/background/dimension.md#the-ratio-of-spread-to-separation, after Chung, Choi & Kim 2026.
"""

from __future__ import annotations

import numpy as np


def measure_spread(
    reference: np.ndarray, reference_classes: np.ndarray, vectors: np.ndarray, classes: np.ndarray
) -> float:
    """Spread within a class over half the distance between two, in the direction of that distance.

        r² = mean over y and c of  E[ (<v - m_y, m_c - m_y> / (|m_c - m_y|² / 2))² | y ]

    with the class means m of the reference. 0 where every vector is the mean of its class; at 1 the usual
    vector is as near to another mean as to its own, and the nearest mean says no more. NaN where the
    reference has fewer than two classes, or two of the same mean, or none of the vectors' classes.

    Shapes: reference [R, F], vectors [N, F]; their classes int [R], [N]. Classes that the reference has not
    are left out.
    """
    reference, vectors = np.asarray(reference, np.float64), np.asarray(vectors, np.float64)
    known = np.unique(reference_classes)
    means = np.stack([reference[reference_classes == c].mean(axis=0) for c in known])
    squares = []
    for i, c in enumerate(known):
        away = np.delete(means, i, axis=0) - means[i]
        distance2 = (away**2).sum(axis=-1)
        deviations = vectors[classes == c] - means[i]
        if not deviations.size:
            continue
        if not distance2.size or distance2.min() == 0:
            return float("nan")
        squares.append(((2 * deviations @ away.T / distance2) ** 2).mean())
    return float(np.sqrt(np.mean(squares))) if squares else float("nan")
