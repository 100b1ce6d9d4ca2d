"""A run with a controller: it acts between steps, its rows say so, and resumed it is the same run."""

import itertools

import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.training.loop import Callbacks
from kssm_mlx.training.monitoring import Monitoring
from kssm_mlx.training.recipe import parse
from tests.support.controlled_model import ControlledModel
from tests.support.tiny_run import rows, saved, tiny_recipe, tiny_run

CONTROLLED = {
    "monitor": {"profile": "A", "target": "notes"},
    "control": {"rule": "drift", "R": [0.02, 0.1]},
    "loss": {"uncertainty": {"weight": 0.1}, "coherence": {"weight": 1.0, "target": 0.2}},
    "train": {"groups": {"mamba": {"learning_rate": 0.5}}, "learning_rate": 1e-3},
}


class Stop(Exception):
    """The plug is pulled."""


def run(folder, stop_at=None, **options):
    def on_step(step, row):
        if step == stop_at:
            raise Stop

    return tiny_run(
        folder, model=ControlledModel(), hooks=Callbacks(on_step=on_step), **{**CONTROLLED, **options}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlled") / "run"
    return folder, run(folder)


def test_rows_tell_tone_action_and_knobs_and_the_knobs_stay_turned(whole):
    steps = rows(whole[0], "train")
    assert {row["action"] for row in steps} == {"BRAKE"} and {row["reason"] for row in steps} == {"R_high"}
    assert [row["knob_core.K"] for row in steps] == pytest.approx([0.95**n for n in range(12)], rel=1e-5)
    for before, row in itertools.pairwise(steps):
        assert row["knob_core.sigma"] == pytest.approx(0.1 * (before["R"] - 0.1), rel=1e-4)
        assert row["RU"] == pytest.approx(row["R"] * row["U"], rel=1e-5)
    assert {"tone", "phase_mean", "phase_std", "omega_mean", "omega_std"} <= steps[0].keys()
    assert {"term_uncertainty", "uncertainty_U", "term_coherence", "grad_rms_mamba"} <= steps[0].keys()


def test_evaluations_and_the_model_that_is_left_have_the_knobs_of_their_step(whole):
    folder, result = whole
    weights = saved(folder).snapshot.tensors["model"]
    assert weights["core.K"].item() == pytest.approx(0.95**12, rel=1e-5)
    assert result.state.knobs["core.K"].item() == weights["core.K"].item()
    assert all(row.keys() >= {"residence_R", "residence_joint"} for row in rows(folder, "eval"))


@pytest.mark.parametrize("step", [3, 6, 11])
def test_stopped_and_resumed_it_is_the_same_run(tmp_path, whole, step):
    folder = tmp_path / "run"
    text = saved(whole[0]).snapshot.state["identity"]["config"]["data.source"]
    options = {"data": {"source": text}, "save": {"every": 3}, "eval": {"every": 4}}
    with pytest.raises(Stop):
        run(folder, stop_at=step, **options)
    run(folder, resume=True, **options)
    mine, other = (saved(f).snapshot.tensors for f in (folder, whole[0]))
    for stem, tensors in other.items():
        assert mine[stem].keys() == tensors.keys()
        assert all(np.array_equal(mine[stem][name], array) for name, array in tensors.items())
    assert rows(folder, "train", "eval") == rows(whole[0], "train", "eval")


def test_labels_alone_and_knobs_that_are_put_back(tmp_path):
    (tmp_path / "labels").mkdir()
    labels = run(
        tmp_path / "labels" / "run", control=CONTROLLED["control"] | {"label_only": True}, train={"steps": 3}
    )
    assert labels.state.knobs["core.K"].item() == 1.0
    assert [row["action"] for row in rows(tmp_path / "labels" / "run", "train")] == ["BRAKE"] * 3
    run(tmp_path / "again", control=CONTROLLED["control"] | {"persist": False}, train={"steps": 4})
    turned = [row["knob_core.K"] for row in rows(tmp_path / "again", "train")]
    assert turned == pytest.approx([1.0, 0.95, 0.95, 0.95])


def test_a_model_without_knobs_or_without_R_is_refused(tmp_path):
    for control, message in (
        ({"rule": "drift"}, "the knobs of tiny are: none"),
        ({"rule": "drift", "label_only": True}, "needs R, which this model's trace does not have"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_run(tmp_path / "run", control=control)


def test_residence_counts_the_steps_since_it_was_asked():
    recipe = parse({"monitor": {"target": "notes", "product": [0.4, 0.6]}})
    watch = Monitoring(recipe, "any", {})
    for R, U in ((0.9, 0.5), (0.9, 0.7), (0.9, 0.42), (0.5, 0.5)):
        watch.step({"R": R, "U": U, "RU": R * U}, {})
    assert watch.residence() == {"residence_R": 3 / 4, "residence_joint": 1 / 4}
    assert watch.residence() == {}


def test_patience_cuts_the_rate_then_stops_and_a_resumed_run_does_the_same(tmp_path):
    rules = {"intervals": 1.0, "improvement": 0.0, "cuts": 1, "plateau": 1.0, "overfit": 1.0}
    loud = {"learning_rate": 0.1, "warmup": 0, "schedule": "constant", "steps": 60}
    folders = [tmp_path / name / "run" for name in "ab"]
    options = {"monitor": {"patience": rules}, "eval": {"every": 1}, "train": loud, "save": {"every": 5}}
    for folder in folders:
        folder.parent.mkdir()
    options["data"] = {"source": tiny_recipe(tmp_path / "run").data.source}

    done = tiny_run(folders[0], **options)
    (cut, cut_words), (stop, stop_words) = [
        (row["step"], row["message"]) for row in rows(folders[0], "event") if "WAIT" not in row["message"]
    ]
    assert cut_words.startswith("CUT (T7)") and stop_words.startswith("STOP (T8)")
    assert done.step == stop < 60
    rates = {row["step"]: row["lr"] for row in rows(folders[0], "train")}
    assert rates[cut] == pytest.approx(0.1) and rates[cut + 1] == rates[stop] == pytest.approx(0.06)

    def pull(step, row):
        if step == cut + 3:
            raise Stop

    with pytest.raises(Stop):
        tiny_run(folders[1], hooks=Callbacks(on_step=pull), **options)
    assert tiny_run(folders[1], resume=True, **options).step == stop
    assert rows(folders[1], "train", "eval") == rows(folders[0], "train", "eval")
    assert tiny_run(folders[1], resume=True, **options).was_finished
