"""What an experiment's file may say, and the one line for what it may not."""

import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.experiments.arms import flatten_settings, list_variants, resolve_recipe
from kssm_mlx.experiments.design import list_experiments, load_design, make_smoke, parse_design
from kssm_mlx.experiments.match_size import count_parameters, match_parameters
from kssm_mlx.experiments.schedule import choose_settings, list_jobs, list_selections, require_runnable
from kssm_mlx.experiments.template import TEMPLATE
from kssm_mlx.parsing import parse_toml
from kssm_mlx.training import recipe as recipes


def table(**sections):
    base = {
        "run": {"seeds": [0, 1], "set": {"train.steps": 4}},
        "arms": {"a": {"set": {"model.kappa": 1.0}}, "b": {"set": {"model.kappa": 0.0}}},
        "claim": [{"arm": "a", "against": "b", "rule": "lower"}],
    }
    return {**base, **sections}


def refused(**sections) -> str:
    with pytest.raises(ConfigError) as refusal:
        require_runnable(parse_design(table(**sections), where="q.toml"))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("name", list_experiments())
def test_every_shipped_experiment_can_run_in_its_smoke_form(name):
    design, text = load_design(name)
    require_runnable(make_smoke(design), smoke=True)
    assert design.about.question and text.startswith("# ")
    assert "Minutes:" in text and "Expected:" in text and "kssm experiment run" in text


def test_the_file_that_new_writes_runs_as_it_is():
    design = parse_design(parse_toml(TEMPLATE))
    assert [v.name for v in require_runnable(design)] == ["coupled", "linear"]


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"run": {"seeds": []}}, "run.seeds"),
        ({"run": {}}, "run.seeds is missing"),
        ({"run": {"seeds": [1, 1]}}, "run.seeds has a seed twice: [1, 1]"),
        ({"run": {"seeds": [1], "recipee": "x"}}, "unknown key 'run.recipee'; did you mean 'recipe'?"),
        ({"run": {"seeds": [1], "recipe": "defalt"}}, "no recipe 'defalt'"),
        ({"arms": {"a": {"set": {"model.kapa": 1.0}}, "b": {}}}, "arm 'a': unknown key 'model.kapa'"),
        ({"run": {"seeds": [1], "protocol": "trian"}}, "no protocol 'trian'; protocols are train, intervene"),
        ({"claim": [{"arm": "c", "against": "b", "rule": "lower"}]}, "no arm 'c'; arms are a, b"),
        ({"claim": [{"arm": "a", "rule": "lower"}]}, "say what the arm is compared with"),
        ({"claim": [{"arm": "a", "against": "b", "value": 1.0, "rule": "lower"}]}, "not with both"),
        ({"claim": [{"arm": "a", "against": "b", "rule": "beter"}]}, "claim.0.rule"),
        ({"metric": {"name": "nats_per_tokn"}}, "nobody measures 'nats_per_tokn'"),
        ({"metric": {"name": "do_kl"}}, "nobody measures 'do_kl': protocol 'train' gives"),
        ({"options": {"hold": ["R=1"]}}, "options.hold: protocol 'train' has no such option"),
        ({"arms": {"a": {"set": {"model.kapa": 1.0}}}}, "claim"),
        ({"stop": {"looks": [2, 1]}}, "stop.looks [2, 1] should rise to the number of seeds, 2"),
        ({"select": {"grid": {"train.steps": [1]}, "seed": 1}}, "select.seed 1 is a seed of the experiment"),
        ({"arms": {"../a": {}}}, "a name has no '/'"),
        ({"grid": {"train.steps": []}}, "grid: train.steps has no values"),
        ({"claims": []}, "unknown key 'claims'; did you mean 'claim'?"),
    ],
)
def test_a_bad_file_gets_one_line(sections, message):
    assert message in refused(**sections)


def test_arms_of_the_same_settings_are_refused():
    """Also where one of them writes out what the other has by default."""
    same = {"a": {"set": {"train.optimizer": "adamw"}}, "b": {}}
    said = "arms 'a' and 'b' have the same settings; change one of them"
    assert said in refused(arms=same, claim=[])
    assert said in refused(arms={"a": {}, "b": {}}, claim=[])
    with pytest.raises(ConfigError, match=said):
        require_runnable(parse_design(table(arms={"a": {}, "b": {}}, claim=[])), smoke=True)


def test_arms_that_differ_in_what_should_be_equal_are_refused():
    arms = {"a": {"set": {"train.steps": 4}}, "b": {"set": {"train.steps": 5}}}
    said = refused(arms=arms)
    assert "the arms differ in tokens" in said and "take 'tokens' out of run.equal" in said
    wide = {"a": {}, "b": {"set": {"model.d_model": 64}}}
    assert "the arms differ in parameters" in refused(
        arms=wide, run={"seeds": [0], "equal": ["parameters"]}, claim=[]
    )


def test_the_digest_is_of_what_decides():
    one = parse_design(table())
    said = parse_design(table(about={"question": "other words", "minutes": 3.0}))
    other = parse_design(table(claim=[{"arm": "a", "against": "b", "rule": "equal"}]))
    assert one.digest == said.digest != other.digest


def test_a_grid_is_every_arm_with_every_combination():
    design = parse_design(table(grid={"train.learning_rate": [1e-3, 2e-3]}, claim=[]))
    names = [v.name for v in list_variants(design)]
    assert names == [f"{arm}, learning_rate={rate}" for arm in "ab" for rate in ("0.001", "0.002")]
    assert resolve_recipe(design, list_variants(design)[1], 5).train.learning_rate == 2e-3


def test_seeds_are_outermost():
    design = parse_design(table())
    jobs = list_jobs(design, list_variants(design))
    assert [(job.seed, job.arm) for job in jobs] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert {job.recipe.train.seed for job in jobs} == {0, 1}
    assert [job.arm for job in list_jobs(design, list_variants(design), only=["b"], seeds=1)] == ["b"]
    with pytest.raises(ConfigError, match=r"--only: no arm 'c'"):
        list_jobs(design, list_variants(design), only=["c"])
    with pytest.raises(ConfigError, match=r"--seeds 3: the experiment has 2"):
        list_jobs(design, list_variants(design), seeds=3)


def test_each_arm_takes_its_own_best_setting():
    select = {"grid": {"train.learning_rate": [1e-3, 2e-3]}, "set": {"train.steps": 2}}
    design = parse_design(table(select=select))
    variants = list_variants(design)
    tried = list_selections(design, variants)
    assert {(job.seed, job.recipe.train.steps, job.purpose) for job in tried} == {(100, 2, "select")}
    losses = dict(zip([job.arm for job in tried], [2.0, 1.0, 1.0, 2.0], strict=True))
    chosen = choose_settings(
        design, variants, {arm: {"metrics": {"nats_per_token": x}} for arm, x in losses.items()}
    )
    assert chosen == {"a": {"train.learning_rate": 2e-3}, "b": {"train.learning_rate": 1e-3}}
    rates = {job.arm: job.recipe.train.learning_rate for job in list_jobs(design, variants, chosen)}
    assert rates == {"a": 2e-3, "b": 1e-3}


def test_an_empty_table_is_a_value_and_a_nested_one_is_keys():
    assert flatten_settings({"model": {"kappa": 1}, "monitor.patience": {}}) == {
        "model.kappa": 1,
        "monitor.patience": {},
    }


@pytest.mark.parametrize("family", ["kssm", "mamba", "mamba2", "rwkv", "rwkv7", "transformer", "gru"])
def test_a_family_is_given_the_parameters_asked_for(family):
    settings = {"model.family": family, "model.kappa": recipes.UNSET}
    recipe = match_parameters(recipes.load("groups", settings), 400_000)
    assert count_parameters(recipe) == pytest.approx(400_000, rel=0.01)


def test_a_part_that_is_switched_off_stays_off():
    wide = {"model.expansion": 8, "model.n_groups": 64, "model.mlp_hidden": 0, "model.field": 10.0}
    recipe = match_parameters(recipes.override(recipes.load("default"), wide), 300_000)
    assert count_parameters(recipe) == pytest.approx(300_000, rel=0.01)
    assert recipe.model.overrides["mlp_hidden"] == 0


def test_what_cannot_be_matched_is_said():
    with pytest.raises(
        ConfigError, match=r"run.match knows no width of model.family 'kssm_v1'; it does of kssm"
    ):
        match_parameters(recipes.load("kssm-v1"), 10_000)
    with pytest.raises(ConfigError, match=r"brings a kssm within 1 % of 200 parameters; the nearest has"):
        match_parameters(recipes.load("default"), 200)
    with pytest.raises(ConfigError, match=r"run.match is for fresh models"):
        match_parameters(recipes.load("phase-mamba"), 10_000)
    mix = {"model.n_groups": 128, "model.dimensions": {"2": 96, "3": 32}, "model.mlp_hidden": 0}
    with pytest.raises(ConfigError, match=r"^model.dimensions says how many .* leave match out"):
        match_parameters(recipes.load("default", mix), 400_000)
