"""Adapters: nothing at the start, only they train, fusing them changes no logits, mlx-lm reads them."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.adapters import DoRALinear, LoRALinear, attach_lora, fuse_lora
from kssm_mlx.training.budget.sums import product_flops, sum_bytes
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from kssm_mlx.weights.export import export_adapters
from kssm_mlx.weights.quantize import quantize
from tests.support.exported import SMALL, exported, tiny

NAMES = ("lora_a", "lora_b", "m")
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


# DoRA


def layer(bias: bool = True, rank: int = 3) -> DoRALinear:
    """As after some training: both matrices and the norms off their start."""
    keys = mx.random.split(mx.random.key(5), 5)
    base = nn.Linear(6, 4, bias=bias)
    base.weight = mx.random.normal((4, 6), key=keys[0])
    adapter = DoRALinear(base, keys[1], rank, scale=1.5)
    adapter.lora_b = mx.random.normal((rank, 4), key=keys[2])
    adapter.m = adapter.m * mx.random.uniform(0.5, 2.0, (4,), key=keys[3])
    return adapter


def test_dora_and_its_gradient_in_float64():
    """The norm that is divided by counts as a constant."""
    adapter, x = layer(), mx.random.normal((5, 6), key=mx.random.key(1))
    dy = mx.random.normal((5, 4), key=mx.random.key(2))
    W, b, A, B, m, X, D = (
        np.array(a, np.float64)
        for a in (*(adapter.linear[n] for n in ("weight", "bias")), *(adapter[n] for n in NAMES), x, dy)
    )
    V = W + 1.5 * (A @ B).T
    norm = np.linalg.norm(V, axis=1)
    np.testing.assert_allclose(np.array(adapter(x)), X @ V.T * (m / norm) + b, rtol=1e-5, atol=1e-5)
    scaled = D * (m / norm)
    expected = {
        "m": (D * (X @ V.T) / norm).sum(axis=0),
        "lora_a": 1.5 * X.T @ scaled @ B.T,
        "lora_b": 1.5 * (X @ A).T @ scaled,
    }
    adapter.freeze()
    adapter.unfreeze(keys=list(adapter.trained), recurse=False)
    _, grads = nn.value_and_grad(adapter, lambda: (adapter(x) * dy).sum())()
    assert grads.keys() - {"linear"} == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(np.array(grads[name]), value, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("bias", [False, True])
def test_dora_is_mlx_lms(bias):
    from mlx_lm.tuner.dora import DoRALinear as Theirs

    adapter, x = layer(bias), mx.random.normal((5, 6), key=mx.random.key(1))
    theirs = Theirs.from_base(adapter.linear, r=3, scale=1.5)
    for name in NAMES:
        theirs[name] = adapter[name]
    assert mx.allclose(theirs(x), adapter(x), atol=1e-5)
    assert mx.allclose(theirs.fuse().weight, adapter.fuse().weight, atol=1e-5)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "kssm"])
def test_dora_adds_nothing_at_the_start_trains_and_is_fused(family):
    model, plain = tiny(family), tiny(family)
    names = attach_lora(model, rank=4, alpha=8, kind="dora")
    assert mx.array_equal(model(TOKENS), plain(TOKENS))
    losses = trained(model)
    assert losses[-1] < losses[0]
    assert dict(tree_flatten(model.trainable_parameters())).keys() == {
        f"{n}.{m}" for n in names for m in NAMES
    }
    adapted = model(TOKENS)
    assert mx.abs(fuse_lora(model)(TOKENS) - adapted).max() < 1e-4 * mx.abs(adapted).max()
    assert flat(model).keys() == flat(plain).keys()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx_lm_loads_what_is_exported_as_adapters(kind, tmp_path):
    from mlx_lm import load

    model = tiny("mamba")
    folder = exported(model, tmp_path / "host")
    attach_lora(model, rank=4, alpha=8, kind=kind)
    trained(model)
    export_adapters(model, tmp_path / "adapters", "digest")
    theirs, _ = load(str(folder), adapter_path=str(tmp_path / "adapters"), trust_remote_code=True)
    assert mx.allclose(theirs(TOKENS), model(TOKENS), atol=1e-4)
    with pytest.raises(ConfigError, match="in use"):
        export_adapters(model, tmp_path / "adapters", "digest")
    with pytest.raises(ConfigError, match="no adapters of its own"):
        export_adapters(tiny("mamba"), tmp_path / "none", "digest")


# QLoRA

BITS = [("affine", 4), ("affine", 8), ("mxfp4", 4), ("mxfp8", 8)]


@pytest.mark.parametrize("mode, bits", BITS)
@pytest.mark.parametrize("family", ["mamba", "rwkv7", "kssm"])
def test_adapters_beside_projections_in_few_bits(family, mode, bits):
    model = tiny(family)
    quantised = quantize(model, bits, mode, 32)
    before, plain = flat(model), model(TOKENS)
    names = attach_lora(model, rank=4, alpha=8, kind="qlora")
    assert set(names) <= set(quantised)
    assert mx.array_equal(model(TOKENS), plain)
    losses = trained(model)
    assert losses[-1] < losses[0]
    learned = dict(tree_flatten(model.trainable_parameters()))
    assert learned.keys() == {f"{name}.{m}" for name in names for m in ("lora_a", "lora_b")}
    assert all(mx.any(learned[f"{name}.lora_b"]).item() for name in names)  # a gradient reached each
    after = {n.replace(".linear.", "."): a for n, a in flat(model).items() if n not in learned}
    assert after.keys() == before.keys() and all(mx.array_equal(after[n], before[n]) for n in before)
    adapted = model(TOKENS)
    fused = fuse_lora(model)(TOKENS)
    # bf16 is what mxfp4 and mxfp8 are read as, affine scales are fp32 here.
    assert mx.abs(fused - adapted).max() < (1e-4 if mode == "affine" else 3e-2) * mx.abs(adapted).max()


def test_few_bits_are_counted_as_the_weights_they_hold():
    model = tiny("mamba")
    sums, flops = sum_bytes(model), product_flops(model)
    names = quantize(model, 4, group_size=32)
    few = sum_bytes(model)
    assert names and few.trained + few.frozen == sums.trained and few.weights < sums.weights
    assert product_flops(model) == flops


def test_a_full_base_model_is_no_place_for_qlora():
    with pytest.raises(ConfigError, match=r'"qlora" is for a quantised base model, and no projection'):
        attach_lora(tiny("mamba"), rank=2, alpha=2, kind="qlora")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_outputs_and_gradients_are_those_of_peft(kind):
    """Hugging Face's implementation, with the same numbers in it."""
    torch = pytest.importorskip("torch", reason="peft computes with torch, which is not installed")
    peft = pytest.importorskip("peft", reason="pip install peft")
    rng = np.random.default_rng(0)
    W, b, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 6), (5,), (3, 6)))
    linear = nn.Linear(6, 5)
    linear.weight, linear.bias = mx.array(W), mx.array(b)
    ours = {"lora": LoRALinear, "dora": DoRALinear}[kind](linear, mx.random.key(0), 2, 3.0)
    ours.lora_b = mx.array(rng.standard_normal((2, 5)).astype(np.float32))
    ours.freeze()
    ours.unfreeze(keys=list(ours.trained), recurse=False)
    if kind == "dora":
        ours.m = ours.m * mx.array([0.5, 1.0, 1.5, 2.0, 3.0])

    net = torch.nn.Sequential(torch.nn.Linear(6, 5))
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["0"], use_dora=kind == "dora", lora_dropout=0.0
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(W))
        net[0].bias.copy_(torch.tensor(b))
    layer = peft.get_peft_model(net, config).base_model.model[0]
    theirs = {"lora_a": layer.lora_A["default"].weight, "lora_b": layer.lora_B["default"].weight}
    if kind == "dora":
        theirs["m"] = layer.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(torch.tensor(np.array(ours[name].T)))

    y = layer(torch.tensor(x))
    (y**2).sum().backward()
    loss = nn.value_and_grad(ours, lambda m: (m(mx.array(x)) ** 2).sum())
    gradients = dict(tree_flatten(loss(ours)[1]))
    np.testing.assert_allclose(np.array(ours(mx.array(x))), y.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert gradients.keys() == theirs.keys()
    for name, parameter in theirs.items():
        got = np.array(gradients[name].T)
        np.testing.assert_allclose(got, parameter.grad.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
