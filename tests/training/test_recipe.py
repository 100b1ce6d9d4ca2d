"""Recipes are refused unless every key is understood, in one line that says what to write instead."""

import math
import re

import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.runs.records import read_recipe
from kssm_mlx.training import recipe, recipe_sections


def refused(table: dict) -> str:
    with pytest.raises(ConfigError) as error:
        recipe.parse(table)
    message = str(error.value)
    assert "\n" not in message and message.startswith("recipe: ")
    return message.removeprefix("recipe: ")


@pytest.mark.parametrize(
    "table,message",
    [
        ({"trian": {}}, "unknown key 'trian'; did you mean 'train'?"),
        (
            {"train": {"learning_rte": 1e-3}},
            "unknown key 'train.learning_rte'; did you mean 'learning_rate'?",
        ),
        (
            {"about": {"expected": {"metric": "accuracy", "value": 1, "tolerance": 1, "tolerence": 1}}},
            "unknown key 'about.expected.tolerence'; did you mean 'tolerance'?",
        ),
        ({"about": {"expected": {"metric": "x", "value": 1}}}, "about.expected.tolerance is missing"),
    ],
)
def test_an_unknown_or_missing_key_is_named_with_the_nearest_one(table, message):
    assert refused(table) == message


@pytest.mark.parametrize(
    "table,said",
    [
        ({"train": {"steps": "12"}}, "train.steps: input should be a valid integer, got '12'"),
        ({"train": {"steps": 0}}, "train.steps: input should be greater than or equal to 1, got 0"),
        ({"train": {"steps": 10.5}}, "train.steps: input should be a valid integer, got 10.5"),
        ({"train": {"clip": True}}, "train.clip: input should be a valid number, got True"),
        (
            {"train": {"learning_rate": math.inf}},
            "train.learning_rate: input should be a finite number, got inf",
        ),
        ({"train": {"hand_off": "yes"}}, "train.hand_off: input should be a valid boolean, got 'yes'"),
        (
            {"train": {"schedule": "cosin"}},
            "train.schedule: input should be 'cosine', 'linear', 'constant' or 'wsd', got 'cosin'",
        ),
        ({"data": {"source": 3}}, "data.source: input should be a valid string, got 3"),
        ({"train": 3}, "train: should be a table, written [train], got 3"),
    ],
)
def test_a_wrong_type_or_value_is_told_with_what_was_got(table, said):
    assert refused(table) == said


def test_every_mistake_is_told_at_once():
    message = refused({"train": {"steps": 0, "clipp": 1}})
    assert "train.steps" in message and "did you mean 'clip'" in message


def test_a_batch_that_accumulation_does_not_divide_is_refused():
    message = refused({"train": {"batch_size": 10, "accumulation": 4}})
    assert message.startswith("train: batch_size 10 is not a multiple of accumulation 4")


def test_whole_numbers_are_good_floats_and_the_model_section_is_open():
    parsed = recipe.parse({"train": {"clip": 2}, "model": {"size": "xs", "kappa": 0}})
    assert parsed.train.clip == 2.0
    assert parsed.model.overrides == {"kappa": 0}


def test_a_recipe_survives_its_own_json():
    parsed = recipe.parse(
        {"about": {"expected": {"metric": "loss", "value": 1, "tolerance": 0}}, "model": {"a": 1}}
    )
    assert recipe.parse(parsed.model_dump(mode="json")) == parsed


@pytest.mark.parametrize(
    "text,expected",
    [
        ("model.kappa=0", ("model.kappa", 0)),
        ("train.learning_rate=1e-3", ("train.learning_rate", 1e-3)),
        ("train.hand_off=true", ("train.hand_off", True)),
        ("model.size=xs", ("model.size", "xs")),
        ("data.source=file:a=b.txt", ("data.source", "file:a=b.txt")),
    ],
)
def test_an_override_is_toml_or_a_bare_word(text, expected):
    assert recipe.parse_override(text) == expected


@pytest.mark.parametrize("text", ["steps=3", "train.steps", ""])
def test_an_override_without_section_or_value_is_refused(text):
    with pytest.raises(ConfigError, match=r"--set takes section\.key=value"):
        recipe.parse_override(text)


def test_overrides_are_applied_to_the_file_and_checked_like_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nsteps = 7\nclip = 0.5\n")
    loaded = recipe.load(path, {"train.steps": 9, "model.kappa": 0})
    assert (loaded.train.steps, loaded.train.clip, loaded.model.overrides) == (9, 0.5, {"kappa": 0})
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        recipe.load(path, {"train.stepps": 9})
    path.write_text("train = 3\n")
    with pytest.raises(ConfigError, match="'train' is a value, not a section"):
        recipe.load(path, {"train.steps": 9})


def test_a_file_that_is_missing_or_not_toml_is_told_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe '.*absent\.toml', neither a TOML file nor"):
        recipe.load(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    for content in (b"[train\nsteps = 1", b"\xff\xfe\x00"):
        broken.write_bytes(content)
        with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
            recipe.load(broken)


def test_a_misspelt_name_of_a_shipped_recipe_gets_the_nearest(monkeypatch, tmp_path):
    shipped = tmp_path / "default.toml"
    shipped.write_text("[train]\nsteps = 3\n")
    monkeypatch.setattr(recipe, "list_shipped", lambda: {"default": shipped})
    assert recipe.load("default").train.steps == 3
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        recipe.load("defualt")


def test_a_base_model_takes_the_place_of_a_family(tmp_path):
    path = tmp_path / "host.toml"
    path.write_text('[model]\nbase = "folder"\nrank = 4\n')
    model = recipe.load(path).model
    assert isinstance(model, recipe_sections.Pretrained)
    assert (model.base, model.train, model.rank, model.alpha) == ("folder", "lora", 4, 16.0)
    again = recipe.parse(recipe.load(path).model_dump())
    assert again.model == model


@pytest.mark.parametrize(
    "table, message",
    [
        ({"base": "folder", "rnak": 4}, "unknown key 'model.rnak'; did you mean 'rank'"),
        ({"base": "folder", "family": "mamba"}, "unknown key 'model.family'"),
        (
            {"base": "folder", "train": "some"},
            "model.train: input should be 'lora', 'dora', 'qlora', 'state', 'prompt', 'full' or 'frozen'",
        ),
        ({"base": "folder", "rank": 0}, "model.rank: .*greater than or equal to 1"),
        ({"base": ""}, "model.base: "),
        ({"family": 3}, "model.family: input should be a valid string"),
    ],
)
def test_a_base_model_section_is_strict(table, message):
    with pytest.raises(ConfigError, match=message):
        recipe.parse({"model": table})


def test_the_base_model_was_once_called_host(tmp_path):
    """Recipes, settings and run folders of 0.1.0 say `model.host`."""
    assert recipe.parse({"model": {"host": "folder"}}).model.base == "folder"
    path = tmp_path / "old.toml"
    path.write_text('[model]\nhost = "one"\n[smoke]\nmodel = { host = "two" }\n')
    assert [recipe.load(path, smoke=s).model.base for s in (False, True)] == ["one", "two"]
    assert recipe.load(path, {"model.host": "three"}).model.base == "three"
    assert recipe.load("phase-mamba", {"model.host": "four"}).model.base == "four"
    (tmp_path / "recipe.json").write_text('{"model": {"host": "five", "rank": 4}}')
    assert read_recipe(tmp_path)["model"] == {"base": "five", "rank": 4}
    with pytest.raises(ConfigError, match=r"unknown key 'model.host'"):
        recipe.parse({"model": {"host": "one", "base": "two"}})


def test_what_is_trained_lies_in_a_file_of_its_name():
    def stem(**section):
        return recipe.parse({"model": section}).model.trained_file

    assert [stem(), stem(base="x"), stem(base="x", train="full")] == ["model", "adapters", "model"]


def test_a_key_can_be_taken_out():
    """A recipe of one family for another: its own keys go."""
    key, value = recipe.parse_override("model.kappa=")
    assert (key, value) == ("model.kappa", recipe.UNSET)
    changed = recipe.load("tinyshakespeare", {"model.family": "mamba", key: value, "data.source": "pydoc"})
    assert changed.model.overrides == {}
    assert recipe.load("default", {"model.absent": recipe.UNSET}).model == recipe.load("default").model


@pytest.mark.parametrize(
    "key, value",
    [
        ("train.seed", 10**19),
        ("data.seed", 2**64 - 1),
        ("train.steps", 10**22),
        ("train.batch_size", 2**40),
        ("eval.tokens", 2**60),
        ("save.keep", 10**12),
    ],
)
def test_numbers_beyond_any_run_are_refused_in_one_line(key, value):
    with pytest.raises(ConfigError, match=f"{key}: input should be less than or equal to"):
        recipe.load("default", {key: value})


def test_a_mistake_of_no_single_key_has_no_empty_name(tmp_path):
    """It read "pk.toml: : train.context is 16"."""
    (tmp_path / "pk.toml").write_text('[data]\nsource = "task:passkey"\n[train]\ncontext = 16\n')
    with pytest.raises(ConfigError, match=r"pk\.toml: train\.context is 16, the rows of task:passkey have"):
        recipe.load(tmp_path / "pk.toml")


def test_a_long_value_is_quoted_in_part():
    with pytest.raises(ConfigError, match=r"learning_rate: .*got 'x{100,}\.\.\.") as refused:
        recipe.load("default", {"train.learning_rate": "x" * 50_000})
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "table, metric, says",
    [
        ({}, "nats_per_tokn", "did you mean 'nats_per_token'?"),
        ({}, "skill", "no report of this run has 'skill'"),
        ({}, "R", "no report of this run has 'R'"),
        ({"monitor": {}}, "R", ""),
        ({}, "R_block01", ""),
        ({}, "context_gain", ""),
        ({"data": {"source": "task:parity"}, "train": {"context": 64}}, "accuracy_last@32", "no report"),
    ],
)
def test_an_expected_number_is_one_that_is_measured(table, metric, says):
    about = {"expected": {"metric": metric, "value": 1.0, "tolerance": 0.1}}
    try:
        said = recipe.parse({**table, "about": about}).about.expected and ""
    except ConfigError as e:
        said = str(e)
    assert says in said and bool(says) == bool(said)


@pytest.mark.parametrize(
    "setting, kept",
    [
        ({"data.source": "dir:mine"}, False),
        ({"train.steps": 7}, False),
        ({"train.seed": 3}, True),
        ({"eval.every": 50}, True),
        ({"train.optimizer": "adamw"}, True),  # as it is
    ],
)
def test_a_number_of_the_recipe_is_not_promised_of_another(setting, kept):
    about = recipe.load("default", setting).about
    assert (about.expected is not None, about.minutes is not None) == (kept, kept)
    about = recipe.override(recipe.load("default"), setting).about
    assert (about.expected is not None, about.minutes is not None) == (kept, kept)


def test_what_is_no_longer_measured_is_no_longer_promised(tmp_path):
    """Of settings; a file that promises what it does not measure is wrong, and so are settings that do."""
    shorter = {"data.task.test_lengths": [64]}
    for found in (recipe.load("track-s3", shorter), recipe.override(recipe.load("track-s3"), shorter)):
        assert found.about.expected is None and found.data.task["test_lengths"] == [64]
    goal = {"metric": "accuracy_last@128", "value": 1.0, "tolerance": 0.1}
    with pytest.raises(ConfigError, match=r"about\.expected\.metric: no report of this run"):
        recipe.load("track-s3", {**shorter, "about.expected": goal})
    text = recipe.list_shipped()["track-s3"].read_text()
    (tmp_path / "mine.toml").write_text(text.replace("accuracy_last@1024", "accuracy_last@1000"))
    with pytest.raises(ConfigError, match=r"no report of this run has 'accuracy_last@1000'"):
        recipe.load(tmp_path / "mine.toml")
    with pytest.raises(ConfigError, match=r"train\.stepps"):
        recipe.load("track-s3", {**shorter, "train.stepps": 3})


def test_a_promise_that_is_set_stays():
    own = {"metric": "accuracy", "value": 0.5, "tolerance": 0.1}
    about = recipe.load("default", {"train.steps": 7, "about.expected": own}).about
    assert about.expected and about.expected.metric == "accuracy" and about.minutes is None


@pytest.mark.parametrize("changed", [True, False])
def test_a_copy_of_a_shipped_recipe_keeps_its_promise_as_long_as_it_trains_the_same(tmp_path, changed):
    text = recipe.list_shipped()["default"].read_text()
    copy = text.replace('source = "pydoc"', 'source = "file:mine.txt"') if changed else text
    (tmp_path / "mine.toml").write_text(copy)
    assert (recipe.load(tmp_path / "mine.toml").about.expected is None) == changed
    own = re.sub(r"value = [\d.]+", "value = 1.2", copy)
    assert own != copy
    (tmp_path / "mine.toml").write_text(own)
    found = recipe.load(tmp_path / "mine.toml").about.expected
    assert found and found.value == 1.2
