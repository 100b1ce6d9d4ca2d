"""Tone profiles name every R, once."""

import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.oscillators.zones import PROFILES, TARGETS, tone


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_complete(name):
    edges, names, _, used_by = PROFILES[name]
    assert len(names) == len(edges) + 1 == len(set(names)) and used_by
    assert list(edges) == sorted(edges) and edges[0] > 0 and edges[-1] < 1
    assert tone(0.0, name) == names[0] and tone(1.0, name) == names[-1]


@pytest.mark.parametrize(
    "profile, R, expected",
    [
        ("A", 0.80, "balance"),  # A and B need R above the edge
        ("A", 0.81, "over-sync"),
        ("A", 0.45, "goldilocks"),
        ("B", 0.85, "balance"),
        ("B", 0.45, "unbound"),
        ("C", 0.95, "ache"),  # C, D and E take the edge in
        ("C", 0.10, "intimacy"),
        ("D", 0.30, "goldilocks"),
        ("E", 0.85, "lantern"),
        ("E", 0.84, "below"),
    ],
)
def test_tones(profile, R, expected):
    assert tone(R, profile) == expected


def test_targets_are_ranges():
    for target in TARGETS.values():
        for low, high in filter(None, (target.R, target.U)):
            assert 0 <= low < high <= 1


@pytest.mark.parametrize("R, profile, message", [(0.5, "F", "profile 'F' is unknown"), (1.2, "A", "got 1.2")])
def test_refuses(R, profile, message):
    with pytest.raises(ConfigError, match=message):
        tone(R, profile)
