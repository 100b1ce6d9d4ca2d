"""`kssm train` of the transformer and the hybrids: learning, stopping, resuming, handing off."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import build, config_from_dict
from kssm_mlx.models.hybrids.v3 import PUBLISHED
from tests.support.tiny_run import rows, tiny_run
from tests.training.test_loop import assert_same_run, stopped

HYBRID = {"model_type": "hybrid", "d_model": 16, "n_layers": 2, "head_dim": 8, "mamba_head_dim": 8}
V3 = {"model_type": "hybrid_v3", "d_model": 16, "n_layers": 3, "n_heads": 2, "window": 8}
TRANSFORMER = {"model_type": "transformer", "d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16}
MODELS = {
    "transformer": {**TRANSFORMER, "dropout": 0.1},
    "parallel": {**HYBRID, "state_size": 4, "fusion": "mingru"},
    "interleaved": {**HYBRID, "state_size": 4, "pattern": "RM"},
    "v3": V3,
    "v3 published": {**V3, **PUBLISHED["v3"]},
    "v0.2 published": {**V3, **PUBLISHED["v020"], "n_layers": 2, "groups": 8},
}


def model(name: str):
    return build(config_from_dict({"vocab_size": 6, **MODELS[name]}))


def text(folder):
    """A text that can be learned, and the folders of two runs beside it."""
    for run in "ab":
        (folder / run).mkdir()
    (folder / "text.txt").write_text("abcde " * 120)
    return folder / "text.txt"


@pytest.mark.parametrize("hand_off", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_was_stopped_is_the_run_that_was_not(tmp_path, name, hand_off):
    common = {
        "train": {"hand_off": hand_off, "context": 8, "steps": 6, "batch_size": 8},
        "save": {"every": 2},
    }
    common["data"] = {"source": f"file:{text(tmp_path)}"}
    if name == "transformer" and hand_off:
        with pytest.raises(ConfigError, match="hand_off needs a state of fixed size"):
            tiny_run(tmp_path / "a" / "run", model=model(name), **common)
        return
    tiny_run(tmp_path / "a" / "run", model=model(name), **common)
    stopped(tmp_path / "b" / "run", 3, model=model(name), **common)
    tiny_run(tmp_path / "b" / "run", resume=True, model=model(name), **common)
    assert_same_run(tmp_path / "b" / "run", tmp_path / "a" / "run")
    losses = [row["loss"] for row in rows(tmp_path / "a" / "run", "train")]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.slow  # g++ builds a hundred kernels
@pytest.mark.parametrize("name", ["transformer", "parallel", "v3"])
def test_compiled_training_takes_the_same_steps(tmp_path, name):
    common = {"train": {"context": 8, "steps": 4}}
    common["data"] = {"source": f"file:{text(tmp_path)}"}
    tiny_run(tmp_path / "a" / "run", model=model(name), **common)
    tiny_run(tmp_path / "b" / "run", model=model(name), compiled=True, **common)
    eager, compiled = ([row["loss"] for row in rows(tmp_path / run / "run", "train")] for run in "ab")
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)
    assert mx.isfinite(mx.array(compiled)).all().item()
