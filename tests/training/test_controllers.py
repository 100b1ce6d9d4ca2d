"""Controllers decide as the precursors wrote, and what they turn stays turned."""

import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.training.controllers import RULES, apply_control, refuse_without_knobs
from kssm_mlx.training.recipe import parse
from kssm_mlx.training.steering_sections import Control

KNOBS = {"core.K": 2.0, "core.sigma": 0.01, "core.other": 7.0}


def decide(rule: str, R, U=None, knobs=KNOBS, **options):
    return apply_control(Control(rule=rule, **options), {"R": R, "U": U}, knobs)


@pytest.mark.parametrize(
    "rule, R, U, action, reason",
    [
        ("drift", 0.56, None, "BRAKE", "R_high"),
        ("drift", 0.29, None, "ESCAPE", "R_low"),
        ("drift", 0.55, None, "NONE", "in range"),
        ("hook", 0.96, None, "BRAKE", "R_high"),
        ("hook", 0.79, None, "BOOST", "R_low"),
        ("hook", 0.80, None, "COAST", "in range"),
        ("dual", 0.96, 0.1, "BRAKE", "R_high"),  # R is asked before U
        ("dual", 0.90, 0.1, "BRAKE", "U_low"),
        ("dual", 0.10, 0.1, "BRAKE", "U_low"),  # braking is asked before boosting
        ("dual", 0.10, 0.9, "BOOST", "R_low"),
        ("dual", 0.90, 0.9, "BOOST", "U_high"),
        ("dual", 0.90, 0.5, "COAST", "in range"),
        ("dual", 0.99, None, "COAST", "not measured"),
        ("drift", None, 0.5, "NONE", "not measured"),
    ],
)
def test_the_rules_are_the_published_ones(rule, R, U, action, reason):
    decided = decide(rule, R, U)
    assert (decided.action, decided.reason) == (action, reason)


def test_ranges_can_be_the_recipes_own():
    assert apply_control(Control(rule="drift", R=(0.5, 0.7)), {"R": 0.6}, KNOBS).action == "NONE"
    assert apply_control(Control(rule="dual", U=(0.3, 0.7)), {"R": 0.9, "U": 0.25}, KNOBS).reason == "U_low"


def test_braking_weakens_the_coupling_for_good_and_shakes_while_it_lasts():
    first = decide("drift", 0.75)
    assert first.knobs == pytest.approx({"core.K": 1.9, "core.sigma": 0.02, "core.other": 7.0})
    second = decide("drift", 0.75, knobs=first.knobs)
    assert second.knobs["core.K"] == pytest.approx(1.805)
    idle = decide("drift", 0.5, knobs=second.knobs)
    assert idle.knobs == pytest.approx({"core.K": 1.805, "core.sigma": 0.0, "core.other": 7.0})


@pytest.mark.parametrize("rule", RULES)
def test_raising_and_braking_pull_opposite_ways_and_stay_within_bounds(rule):
    low, high = RULES[rule].R
    up, down = (decide(rule, R, 0.5).knobs["core.K"] for R in (low - 0.1, high + 0.04))
    assert down < 2.0 < up
    assert up == pytest.approx(2.0 * (1 + Control(rule=rule).boost))
    assert decide(rule, low - 0.1, 0.5, knobs={"K": 4.9}).knobs["K"] == 5.0
    assert decide(rule, high + 0.04, 0.5, knobs={"K": 0.101}).knobs["K"] == 0.1


@pytest.mark.parametrize("K", [-1.0, 0.05, 0.1, 2.0, 5.0, 6.0])
@pytest.mark.parametrize("rule", RULES)
def test_a_brake_never_raises_the_coupling_and_a_boost_never_lowers_it(rule, K):
    """Also of a coupling that begins outside the bounds."""
    low, high = RULES[rule].R
    up, down = (decide(rule, R, 0.5, knobs={"K": K}).knobs["K"] for R in (low - 0.1, high + 0.04))
    assert down <= K <= up and (down < K) == (K > 0.1) and (up > K) == (0 < K < 5)


def test_noise_is_capped_where_the_published_gain_never_got():
    assert decide("drift", 1.0).knobs["core.sigma"] == pytest.approx(0.045)
    assert decide("drift", 1.0, noise_gain=1.0).knobs["core.sigma"] == 0.2


def test_label_only_names_and_turns_nothing():
    decided = decide("drift", 0.9, label_only=True)
    assert decided.action == "BRAKE" and decided.knobs == KNOBS


def test_a_model_without_knobs_is_refused_unless_only_labels_are_wanted():
    with pytest.raises(ConfigError, match="the knobs of tiny are: none"):
        refuse_without_knobs(Control(rule="drift"), {}, "tiny")
    refuse_without_knobs(Control(rule="drift", label_only=True), {}, "tiny")
    refuse_without_knobs(Control(rule="drift"), ["core.k_scale"], "tiny")


@pytest.mark.parametrize(
    "table, message",
    [
        ({"monitor": {"target": "note"}}, "unknown name 'note'; .*did you mean 'notes'"),
        ({"monitor": {"profile": "F"}}, "unknown name 'F'; it is one of A, B, C, D, E"),
        ({"monitor": {"target": "paper", "product": [0.4, 0.6]}}, r"never has R·U in \(0.4, 0.6\)"),
        ({"control": {"rule": "drift", "braek": 0.1}}, "unknown key 'control.braek'; did you mean 'brake'"),
        ({"control": {}}, "control.rule is missing"),
        ({"control": {"rule": "drift", "R": [0.9, 0.3]}}, r"control.R: a range goes .* got \[0.9, 0.3\]"),
        ({"control": {"rule": "drift", "R": [0.3, 1.7]}}, "control.R.1: .*less than or equal to 1, got 1.7"),
        ({"control": {"rule": "dual", "U": [0.5, 0.5]}}, "control.U: a range goes from the lower to the"),
        ({"control": {"rule": "drift", "bounds": [5, 0.1]}}, r"control.bounds: .* got \[5.0, 0.1\]"),
        ({"monitor": {"product": [0.6, 0.4]}}, "monitor.product: a range goes from the lower to the higher"),
    ],
)
def test_sections_that_cannot_be_meant_are_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        parse(table)


def test_the_published_box_is_accepted_and_survives_json():
    recipe = parse(
        {"monitor": {"profile": "A", "target": "notes", "product": [0.4, 0.6]}, "control": {"rule": "dual"}}
    )
    assert parse(recipe.model_dump(mode="json")) == recipe
