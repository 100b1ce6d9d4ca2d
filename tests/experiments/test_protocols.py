"""Each protocol on a tiny run: what it measures is there, is right, and is what a claim may ask for."""

import io
import json
from dataclasses import replace
from fnmatch import fnmatch

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console

from kssm_mlx.checks.core.registry import Check
from kssm_mlx.errors import CheckFailed, ConfigError
from kssm_mlx.experiments.intervene import Hold, conclude, measure_effects, parse_holds, tell_effects
from kssm_mlx.experiments.job import Job, Measured
from kssm_mlx.experiments.protocols import NAMES, find_protocol, parse_options
from kssm_mlx.experiments.protocols.observe import Options as ObserveOptions
from kssm_mlx.experiments.protocols.observe import observe
from kssm_mlx.experiments.protocols.text import measure, read_prompts
from kssm_mlx.experiments.protocols.unfreeze import list_phases
from kssm_mlx.experiments.worker import collect_checks, do_job
from kssm_mlx.models import build, configure
from kssm_mlx.training import recipe as recipes

pytestmark = pytest.mark.usefixtures("uncompiled")
TINY = {"train.steps": 6, "eval.every": 3, "save.every": 3, "model.size": "xs"}


def job(protocol: str, name: str = "default", **options) -> Job:
    return Job("arm", 1, recipes.load(name, {"train.seed": 1, **TINY}, smoke=True), protocol, options=options)


def done(asked: Job, folder, monkeypatch) -> dict:
    monkeypatch.setattr("kssm_mlx.checks.suite.list_suite", lambda level: ("C4",) if level == "P" else ())
    return do_job(asked, folder, Console(file=io.StringIO()))


OPTIONS = {
    "train": {},
    "intervene": {"hold": ["R=0.5"]},
    "observe": {"prompts": 2, "new_tokens": 6, "prompt_tokens": 8},
    "text": {"repeats": 2, "new_tokens": 6},
}
PROMISED = {
    "train": ("nats_per_token", "parameters", "R_rise"),
    "intervene": ("do_R_0.5_nats", "do_kl", "do_placebo_kl", "do_control_kl"),
    "observe": ("observation_changes", "R_gap"),
    "text": ("surprisal", "distinct_2", "repetition", "length"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_protocol_measures_what_it_says(name, tmp_path, monkeypatch):
    row = done(job(name, **OPTIONS[name]), tmp_path, monkeypatch)
    assert not row["failed"] and row["checks"]["pass"] == ["C4"]
    assert all(x in row["metrics"] for x in PROMISED[name])
    known = find_protocol(name).metrics
    assert not [x for x in row["metrics"] if not any(fnmatch(x, pattern) for pattern in known)]
    assert all(np.isfinite(values).all() for values in row["units"].values())
    assert np.mean(row["units"]["nats_per_token"]) == pytest.approx(
        row["metrics"]["nats_per_token"], abs=1e-4
    )
    again = done(job(name, **OPTIONS[name]), tmp_path, monkeypatch)  # finished already: nothing changes
    assert again == row


def test_a_run_that_its_checks_stop_is_a_row_that_says_so(tmp_path, monkeypatch, capsys):
    def stop(*args, **options):
        raise CheckFailed("C4 gradients:\n got none")

    monkeypatch.setattr("kssm_mlx.experiments.protocols.train.train", stop)
    row = done(job("train"), tmp_path, monkeypatch)
    assert row["failed"] == "C4 gradients: got none" and row["metrics"] == {} and row["checks"] == {}
    assert capsys.readouterr().err == "kssm: C4 gradients: got none\n"


def test_options_are_checked():
    with pytest.raises(
        ConfigError, match=r"options.repeat: protocol 'text' has no such option; did you mean 'repe"
    ):
        parse_options(find_protocol("text"), {"repeat": 1})
    with pytest.raises(ConfigError, match=r"options.of: Input should be greater than or equal to 2, got 1"):
        parse_options(find_protocol("clamp"), {"of": 1})
    assert {find_protocol(name).name for name in NAMES} == set(NAMES)


def test_components_learn_one_after_the_other_and_go_on_where_they_were(tmp_path, monkeypatch):
    asked = job("unfreeze", "hybrid-v4-gf", first_share=0.5, second_share=0.25)
    asked = replace(
        asked, recipe=recipes.override(asked.recipe, {"train.steps": 12, "eval.every": 3, "save.every": 3})
    )
    phases = list(list_phases(asked.recipe, parse_options(find_protocol("unfreeze"), asked.options)))
    assert [p.train.steps for p in phases] == [6, 9, 12]
    assert [sorted(p.train.groups) for p in phases] == [["mamba"], ["rwkv"], []]
    # What has learned for half of a third of a run is no result yet; what stops a run at once still does.
    assert [{"C17", "C18", "C19"} <= p.waive.keys() for p in phases] == [True, True, False]
    assert not any({"C1", "C4", "C7"} & p.waive.keys() for p in phases)
    row = done(asked, tmp_path, monkeypatch)
    assert {"nats_phase_1", "nats_phase_2", "nats_phase_3"} <= row["metrics"].keys()
    run = asked.run_folder(tmp_path)
    states = {
        step: mx.load(str(run / f"checkpoints/step_{step:08d}/model.safetensors")) for step in (6, 9, 12)
    }

    def moved(first, second, part):
        names = [n for n in states[first] if f".{part}." in n and "norm" not in n]
        assert names
        return [not mx.array_equal(states[first][n], states[second][n]).item() for n in names]

    assert not any(moved(6, 9, "rwkv")) and any(moved(6, 9, "mamba"))
    assert any(moved(9, 12, "rwkv")) and any(moved(9, 12, "mamba"))
    assert done(asked, tmp_path, monkeypatch) == row


def test_phases_leave_steps_for_both():
    with pytest.raises(ConfigError, match=r"first_share and second_share leave no step in which both learn"):
        parse_options(find_protocol("unfreeze"), {"first_share": 0.6, "second_share": 0.4})


def small(family="kssm", **overrides):
    return build(configure(family, "xs", vocab_size=17, context=16, overrides=overrides), seed=3)


def windows(count=4, length=16):
    tokens = mx.random.randint(0, 17, (count, length + 1), key=mx.random.key(0)).astype(mx.int32)
    return [(tokens, None)]


def louder(model):
    """With a head that says something: a fresh one hardly does."""
    model.head.weight = 3 * mx.random.normal(model.head.weight.shape, key=mx.random.key(1))
    return model


def test_a_hold_holds_and_its_placebo_is_as_large():
    model = louder(small())
    (effect,) = measure_effects(model, windows(), parse_holds(["R=0.7"]))
    assert effect.missed < 1e-5 and effect.kl.shape == (4,) and (effect.kl > 0).all()
    assert (effect.placebo_kl > 0).all() and (effect.control > 1e-3).all()
    text = conclude([effect])
    assert "4 windows" in text and len(tell_effects([effect])[0]) == 8


def test_holding_what_is_there_already_is_no_effect():
    """The loss of a window changes by what the model loses, and by nothing where nothing is held."""
    model = louder(small())
    (late,) = measure_effects(model, windows(), [Hold("R", 0.7, start=8)])
    (all_,) = measure_effects(model, windows(), [Hold("R", 0.7)])
    assert (late.kl < all_.kl).all()
    (one,) = measure_effects(model, windows(), [Hold("R", 0.7, block=1)])
    assert (one.kl != all_.kl).all()


def test_some_units_are_held_and_not_the_others():
    model = louder(small())
    (some,) = measure_effects(model, windows(), parse_holds(["R=0.7"], units="0,1,2"))
    (all_,) = measure_effects(model, windows(), parse_holds(["R=0.7"]))
    assert some.missed < 1e-5 and (some.kl < all_.kl).all()
    with pytest.raises(ConfigError, match="--units is all or numbers such as 0,1,2, got 'first'"):
        parse_holds(["R=1"], units="first")


def test_blocks_that_do_not_reach_the_logits_stop_it():
    model = small()
    model.head.weight = mx.zeros_like(model.head.weight)
    with pytest.raises(
        CheckFailed, match=r"silencing the blocks changes the predictions by 0.0e.00 nats, expected"
    ):
        measure_effects(model, windows(), parse_holds(["R=0.7"]))


def test_a_hold_without_effect_stops_it():
    model = louder(small())
    for block in model.blocks:
        block.mixer.readout.weight = mx.zeros_like(block.mixer.readout.weight)
    with pytest.raises(CheckFailed, match=r"holding R=0.7 changes no logit: the treatment was not applied"):
        measure_effects(model, windows(), parse_holds(["R=0.7"]))


@pytest.mark.parametrize("text", ["R", "R=", "=0.5", "R=a", "R=0.1,b"])
def test_what_is_no_hold_is_said(text):
    with pytest.raises(ConfigError, match=r"--hold takes SITE=VALUE"):
        parse_holds([text])


def test_places_and_sites_that_there_are_not_are_said():
    with pytest.raises(ConfigError, match=r"--block is all or a number and --tokens a:b"):
        parse_holds(["R=1"], tokens="3")
    with pytest.raises(ConfigError, match=r"--block is all or a number"):
        parse_holds(["R=1"], block="first")
    with pytest.raises(ConfigError, match=r"this model holds output, not 'R'"):
        measure_effects(small("gru"), windows(), parse_holds(["R=1"]))


def test_reading_changes_nothing_and_a_model_that_minds_is_caught():
    model, prompts = louder(small()), mx.array([[1, 2, 3], [4, 5, 6]])
    options = ObserveOptions(prompts=2, prompt_tokens=3, new_tokens=5)
    found = observe(model, prompts, options, 0, Measured({})).metrics
    assert found["observation_changes"] == 0.0 and found["R_gap"] < 1e-4

    class Minds:
        """Its second generation differs, as if reading had left something behind."""

        passes = 0
        training = False

        def forward(self, *args):
            self.passes += 1
            out = model.forward(*args)
            return out._replace(logits=out.logits + (self.passes > 5) * mx.arange(17) * 10.0)

        def eval(self): ...
        def train(self, mode=True): ...

    changed = observe(Minds(), prompts, options, 0, Measured({})).metrics
    assert changed["observation_changes"] == 1.0


def test_measures_of_a_text_by_hand():
    found = measure([1, 2, 1, 2, 3], [-1.0, -2.0, -1.0, -2.0, -4.0])
    assert found["surprisal"] == 2.0 and found["length"] == 5.0
    assert found["distinct_1"] == 3 / 5 and found["distinct_2"] == 3 / 4 and found["distinct_3"] == 1.0
    assert found["repetition"] == 2 / 4
    assert measure([], [])["distinct_2"] == 1.0


def test_prompts_come_from_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert read_prompts(str(tmp_path / "p.txt")) == ["one", "two"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match=r"holds no prompt; write one a line"):
        read_prompts(str(tmp_path / "empty.txt"))
    with pytest.raises(ConfigError, match=r"cannot read"):
        read_prompts(str(tmp_path / "none.txt"))


def test_the_worst_verdict_of_a_check_counts(tmp_path):
    def verdict(word):
        check = Check("C1", "earlier tokens matter", "P", word, "0", "1", "", {}, 0.1)
        return check.to_json()

    stages = {"preflight": [verdict("pass")], "final": [verdict("fail")]}
    (tmp_path / "checks.json").write_text(json.dumps(stages))
    assert collect_checks(tmp_path) == {"fail": ["C1"]}
