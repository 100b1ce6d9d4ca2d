"""K-SSM: facts. Its files have our own names."""

from __future__ import annotations

import math
from typing import Any

from kssm_mlx.models.families.family import Claim, Family, UnitTable, rows


def units(c: Any, count: int) -> UnitTable:
    """The populations; of both kinds side by side as large a share of each."""
    claims, read = [], 0
    if c.expanded_spheres:
        return UnitTable("mixer", c.channels, _claim_channels(c.channels, "spheres.", 3))
    if c.expansion:
        claims += _claim_channels(c.channels, "populations.")
    elif G := c.discs:
        claims += _phases(G)
        claims += _read(G, 2 * c.harmonics, read)
        read += 2 * c.harmonics * G
    if G := c.spheres:
        claims += _spheres(G, round(c.turning * G))
        claims += _read(G, c.features, read)
    return UnitTable("mixer", math.gcd(c.discs, c.spheres), claims)


def _claim_channels(I: int, own: str, dimension: int = 2) -> list[Claim]:
    """Contiguous channels; x_proj's columns are what a unit contributes to the common Delta, B and C."""
    vectors = [own + name for name in ("dt_proj.weight", "dt_proj.bias", "log_gamma")]
    places = [own + "omega"] if dimension == 2 else []
    spatial = [] if dimension == 2 else [own + "omega", own + "start"]
    return [
        *rows("routing", I, *vectors, *places, "conv_weight", "conv_bias"),
        *rows("routing", I, *spatial, axis=1),
        *rows("routing", I, own + "x_proj.weight", axis=1),
        *rows("slack", I, "in_proj.weight", "skip"),
        *rows("slack", I, "in_proj.weight", at=I),
        *rows("slack", I, "out_proj.weight", axis=1),
    ]


def _phases(G: int) -> list[Claim]:
    own = "populations."
    vectors = ("omega", "log_gamma", "field.weight", "time_step.weight", "time_step.bias")
    return [
        *rows("routing", G, *(own + name for name in vectors)),
        *rows("routing", G, own + "field.weight", at=G),
        *rows("routing", G, own + "coupling", own + "self_coupling", axis=1),
    ]


def _spheres(G: int, turning: int) -> list[Claim]:
    own = "spheres."
    vectors = ("log_gamma", "time_step.weight", "time_step.bias", "coupling", "pull", "sharpness")
    # Where a token turns but some of them, a share of all is no share of these.
    turned = [own + "rotation.weight"] if turning == G else []
    return [
        *rows("routing", G, *(own + name for name in vectors)),
        *rows("routing", G, own + "omega", own + "start", axis=1),
        *rows("routing", G, own + "directions", axis=2),
        *(claim for i in range(3) for claim in rows("routing", G, own + "field.weight", *turned, at=i * G)),
    ]


def _read(G: int, numbers: int, first: int) -> list[Claim]:
    """The columns of the readout, a block of G for each number that is read of a population."""
    at = (first + i * G for i in range(numbers))
    return [claim for column in at for claim in rows("slack", G, "readout.weight", at=column, axis=1)]


FAMILY = Family(
    "kssm", "KSSMConfig", "KSSM", units=units, width=("d_model", 8), fine=("mlp_hidden", "n_groups")
)
