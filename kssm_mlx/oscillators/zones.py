"""Names for ranges of R: the tone maps and target zones of the precursor projects, as one registry.

The precursors disagree about what R = 0.85 is called and which R is good, so a run names one profile and
every report prints it. Nothing in the dynamics depends on these names.

Source: docs/background/steering.md#tone-maps and #zones.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from kssm_mlx.errors import ConfigError

Range = tuple[float, float]


class Profile(NamedTuple):
    """A tone map: names[i] holds from edges[i - 1] to edges[i]; an R on an edge is above it if `closed`."""

    edges: tuple[float, ...]
    names: tuple[str, ...]
    closed: bool
    used_by: str


class Target(NamedTuple):
    """A range of R that somebody aimed for, and of the uncertainty U where the aim was joint."""

    R: Range
    U: Range | None
    used_by: str


PROFILES: dict[str, Profile] = {
    "A": Profile(
        (0.10, 0.30, 0.40, 0.55, 0.80),
        ("unformed", "intimacy", "joy", "goldilocks", "balance", "over-sync"),
        False,
        "PhaseBlock, hook core, Phase-RWKV",
    ),
    "B": Profile(
        (0.10, 0.30, 0.50, 0.80, 0.95),
        ("unformed", "intimacy", "unbound", "goldilocks", "balance", "over-sync"),
        False,
        "K-SSM v1 and v2",
    ),
    "C": Profile(
        (0.10, 0.30, 0.50, 0.70, 0.85, 0.95),
        ("unformed", "intimacy", "balance", "mystery", "wonder", "passion", "ache"),
        True,
        "K-SSM v3 monitor and inference suite",
    ),
    "D": Profile((0.30, 0.50), ("below", "goldilocks", "above"), True, "K-SSM v3 watch and pass band"),
    "E": Profile((0.85,), ("below", "lantern"), True, "resonance monitor"),
}

TARGETS: dict[str, Target] = {
    "drift": Target((0.30, 0.55), None, "drift controller, PhaseGPT"),
    "paper": Target((0.40, 0.55), (0.40, 0.60), "paper and plots"),
    "notes": Target((0.80, 0.95), (0.40, 0.60), "trainers and the first notes"),
    "strong": Target((0.85, 0.92), None, "uncertainty note"),
    "v2": Target((0.50, 0.80), None, "profile B"),
    "v3": Target((0.30, 0.50), None, "K-SSM v3"),
}


def tone(R: float, profile: str) -> str:
    """What a profile calls an order parameter. Raises: ConfigError for an unknown profile or an impossible
    R.
    """
    if profile not in PROFILES:
        raise ConfigError(f"tone profile {profile!r} is unknown; the profiles are {', '.join(PROFILES)}")
    if not -1e-6 <= R <= 1 + 1e-6:
        raise ConfigError(f"an order parameter lies between 0 and 1, got {R}")
    edges, names, closed, _ = PROFILES[profile]
    return names[(bisect_right if closed else bisect_left)(edges, R)]


def feasible(R: Range, U: Range, product: Range) -> bool:
    """Whether some R and U of these ranges have an R · U in the third.

    Truth: R in 0.40-0.55 with U in 0.4-0.6, the box of the paper, has R · U in 0.16-0.33, never in 0.4-0.6.
    """
    return R[0] * U[0] <= product[1] and product[0] <= R[1] * U[1]


def inside(value: float, among: Range | None) -> bool:
    """Whether a value lies in a range, its ends included; any value where there is no range."""
    return among is None or among[0] <= value <= among[1]
