"""Adapters: nothing at the start, only they train, fusing them changes no logits, mlx-lm reads them."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.adapters import attach_lora, fuse_lora
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from kssm_mlx.weights.quantize import quantize
from tests.support.exported import SMALL, exported, tiny

TOKENS = mx.array(np.random.default_rng(0).integers(0, 256, (2, 20)).astype(np.int32))


def flat(model):
    return dict(tree_flatten(model.parameters()))


def trained(model, steps: int = 3, **options):
    train = Train(learning_rate=0.02, warmup=0, schedule="constant", **options)
    step, state = make_step(model, train, compile=False), initial_state(model, train)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, TOKENS)
        losses.append(metrics["loss"].item())
    model.update(state.params)
    return losses


@pytest.mark.parametrize("family", SMALL)
def test_an_adapter_adds_nothing_at_the_start(family):
    model, plain = tiny(family), tiny(family)
    names = attach_lora(model, rank=4, alpha=8)
    assert names
    assert mx.array_equal(model(TOKENS), plain(TOKENS))


@pytest.mark.parametrize("family", SMALL)
def test_only_adapters_train_and_fusing_them_changes_no_logits(family):
    model, plain = tiny(family), tiny(family)
    names = attach_lora(model, rank=4, alpha=8)
    losses = trained(model)
    assert losses[-1] < losses[0]
    trainable = dict(tree_flatten(model.trainable_parameters()))
    assert trainable.keys() == {f"{name}.{m}" for name in names for m in ("lora_a", "lora_b")}
    base = {n.replace(".linear.", "."): a for n, a in flat(model).items() if n not in trainable}
    before = flat(plain)
    assert base.keys() == before.keys()
    assert all(mx.array_equal(base[n], before[n]) for n in before)
    adapted = model(TOKENS)
    assert mx.abs(adapted - plain(TOKENS)).max() > 1e-2
    fused = fuse_lora(model)
    assert flat(fused).keys() == before.keys()
    assert mx.abs(fused(TOKENS) - adapted).max() < 1e-4 * mx.abs(adapted).max()


def test_adapters_of_a_half_precision_base_model_are_fp32():
    model = tiny("mamba")
    allows = model.cast_predicate
    model.load_weights([(n, a.astype(mx.bfloat16) if allows(n) else a) for n, a in flat(model).items()])
    attach_lora(model, rank=4, alpha=8)
    trained(model, steps=1)
    assert {a.dtype for _, a in tree_flatten(model.trainable_parameters())} == {mx.float32}
    fuse_lora(model)
    assert model.layers[0].mixer.in_proj.weight.dtype == mx.bfloat16


def test_the_same_seed_gives_the_same_adapter():
    one, same, other = tiny("mamba"), tiny("mamba"), tiny("mamba")
    for model, seed in ((one, 0), (same, 0), (other, 1)):
        attach_lora(model, rank=4, alpha=8, seed=seed)
    name = "backbone.layers.0.mixer.in_proj.lora_a"
    assert mx.array_equal(flat(one)[name], flat(same)[name])
    assert not mx.array_equal(flat(one)[name], flat(other)[name])


@pytest.mark.parametrize("family", SMALL)
def test_projections_that_set_the_dynamics_have_no_adapter(family):
    names = attach_lora(tiny(family), rank=2, alpha=2)
    small = ("x_proj", "dt_proj", "field", "time_step", "readout", "lora.0", "lora.2", "head", "embeddings")
    assert not any(name.endswith(small) for name in names)


def test_mlx_lm_loads_the_adapter(tmp_path):
    from mlx_lm import load

    model = tiny("mamba")
    folder = exported(model, tmp_path / "host")
    names = attach_lora(model, rank=4, alpha=8)
    trained(model)
    mx.save_safetensors(
        str(tmp_path / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters()))
    )
    keys = sorted({name.split(".", 3)[3] for name in names})
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    theirs, _ = load(str(folder), adapter_path=str(tmp_path), trust_remote_code=True)
    assert mx.allclose(theirs(TOKENS), model(TOKENS), atol=1e-4)


def test_a_rank_above_the_projections_is_refused():
    with pytest.raises(ConfigError, match="rank 33 is above 32"):
        attach_lora(tiny("mamba"), rank=33, alpha=1)


def test_a_quantised_base_model_is_refused():
    model = tiny("mamba")
    quantize(model, 8, group_size=32)
    with pytest.raises(ConfigError, match="give the unquantised model"):
        attach_lora(model, rank=2, alpha=2)
