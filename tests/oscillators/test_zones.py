"""Tone profiles name every R, once."""

import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.oscillators.zones import PROFILES, TARGETS, feasible, inside, tone


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


def test_the_papers_box_contradicts_itself_and_the_notes_does_not():
    paper, notes = TARGETS["paper"], TARGETS["notes"]
    assert not feasible(paper.R, paper.U, (0.4, 0.6))
    assert feasible(paper.R, paper.U, (0.3, 0.6)) and feasible(notes.R, notes.U, (0.4, 0.6))


@pytest.mark.parametrize("seed", range(5))
def test_feasible_agrees_with_a_search(seed):
    rng = np.random.default_rng(seed)
    R, U, product = np.sort(rng.uniform(0, 1, (3, 2)), axis=1)
    grid = np.linspace(*R, 200)[:, None] * np.linspace(*U, 200)
    found = ((grid >= product[0]) & (grid <= product[1])).any()
    assert feasible(tuple(R), tuple(U), tuple(product)) == found


def test_a_value_is_inside_with_the_ends_and_without_a_range():
    assert [inside(x, (0.3, 0.5)) for x in (0.29, 0.3, 0.5, 0.51)] == [False, True, True, False]
    assert inside(7.0, None)
