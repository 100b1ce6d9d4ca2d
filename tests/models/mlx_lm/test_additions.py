"""What is trained beside a model of mlx-lm: phase cores where every stack has a place, and adapters."""

import json

import mlx.core as mx
import pytest

import kssm_mlx
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.suite import run_suite
from kssm_mlx.data.tokenizers.huggingface import tokenizer_files
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.adapters import attach_lora, fuse_lora
from kssm_mlx.models.base import Clamp, Intervention, flatten
from kssm_mlx.models.grafts.configs import configure
from kssm_mlx.models.grafts.graft import graft
from kssm_mlx.models.state_tuning import StateTuned
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from kssm_mlx.weights.export import export, export_adapters
from kssm_mlx.weights.quantize import quantize
from tests.support.divergence import kl_from_base_model
from tests.support.mlx_lm_models import tiny, tokens
from tests.support.small_kssm import assert_close

pytestmark = pytest.mark.usefixtures("uncompiled")
CORES = {
    "carried": {},
    "everywhere": {"layers": "all", "groups": 8},
    "final": {"site": "final"},
    "hook": {"core": "hook", "layers": 0},
    "phase_block": {"core": "phase_block", "site": "residual", "rank": 4},
    "simplified": {"core": "simplified"},
    "logits": {"core": "logits", "width": 16},
}
every_core = pytest.mark.parametrize("options", CORES.values(), ids=CORES)


def grafted(options, awake: bool = False, name: str = "openelm"):
    base = tiny(name)
    base.freeze()
    model = graft(base, configure(options))
    if awake:
        moved = [
            (n, a + 0.2 * mx.random.normal(a.shape, key=mx.random.key(i)))
            for i, (n, a) in enumerate(flatten(model.trainable_parameters()).items())
        ]
        model.load_weights(moved, strict=False)
    return model


@every_core
def test_training_moves_the_graft_and_no_bit_of_the_base_model(options):
    model, plain = grafted(options), flatten(tiny("openelm").parameters())
    train = Train(
        learning_rate=0.02,
        warmup=0,
        schedule="constant",
        checkpoint_blocks=hasattr(model, "checkpoint_blocks"),
    )
    state, step, losses = initial_state(model, train), make_step(model, train, compile=False), []
    before = flatten(state.params)
    for _ in range(3):
        state, metrics = step(state, tokens(3, 20))
        losses.append(metrics["loss"].item())
    assert losses[-1] < losses[0] and all(name.startswith("graft.") for name in before)
    assert not any(mx.array_equal(a, before[name]) for name, a in flatten(state.params).items())
    base = flatten(model.host.parameters())
    assert base.keys() == plain.keys() and all(mx.array_equal(base[n], plain[n]) for n in plain)


@every_core
def test_a_graft_starts_neutral(options):
    assert 0 <= kl_from_base_model(grafted(options), tokens(3, 20)) < 1e-3


@every_core
def test_cores_pass_the_checks_of_a_causal_model(options):
    model = grafted(options, awake=True)
    found = [run_suite(Context(model=model), [id])[0] for id in ("C1", "C2", "C3", "C4", "C5", "C6", "C7")]
    assert {c.id: c.got for c in found if c.verdict != "pass"} == {}


@every_core
def test_a_reset_forgets_and_padding_leaves_the_phases_alone(options):
    model, x = grafted(options, awake=True, name="llama"), tokens(3, 20)
    whole = model.forward(x, resets=mx.arange(20)[None] == mx.array([[12]] * 3)).logits
    assert_close(whole[:, 12:], model.forward(x[:, 12:]).logits, 1e-4)
    padded = model.forward(x, lengths=mx.array([7, 20, 0])).cache
    alone = model.forward(x[:1, :7]).cache
    first = [[a[:1] for a in entry] for entry in padded]
    assert_close(model.forward(x[:1, 7:], first).logits, model.forward(x[:1, 7:], alone).logits, 1e-4)


@pytest.mark.parametrize("name", ["carried", "final", "logits"])
def test_held_at_zero_the_graft_is_not_there(name):
    model = grafted(CORES[name], awake=True)
    none = model.forward(tokens(2, 9), intervention=Intervention((Clamp("graft", 0.0),))).logits
    assert_close(none, model.host(tokens(2, 9)), 1e-5)
    assert not mx.allclose(model(tokens(2, 9)), none, atol=1e-2)


def test_inside_a_mixer_there_is_no_place():
    with pytest.raises(
        ConfigError, match=r"a block of mlx-lm's is not entered, .* residual, embedding, final or log"
    ):
        graft(tiny("llama"), configure({"core": "phase_block"}))


def test_attention_has_no_state_to_begin_with():
    with pytest.raises(ConfigError, match="state"):
        StateTuned(tiny("llama"))


@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
def test_adapters_are_trained_and_mlx_lm_reads_them(kind, tmp_path):
    from mlx_lm import load

    model = tiny("qwen2")
    if kind == "qlora":
        quantize(model, bits=4, group_size=32)
    sides = tokenizer_files(ByteTokenizer())
    base = export(model, tmp_path / "base", side_files=sides, token_ids={"eos_token_id": [0]})
    names = attach_lora(model, rank=2, alpha=4.0, kind=kind)
    assert {name.split(".")[-1] for name in names} >= {"q_proj", "v_proj", "gate_proj", "down_proj"} - (
        {"down_proj"} if kind == "qlora" else set()  # rows of 48 are no multiple of 32
    )
    train = Train(learning_rate=0.05, warmup=0, schedule="constant")
    state, step, losses = initial_state(model, train), make_step(model, train, compile=False), []
    for _ in range(3):
        state, metrics = step(state, tokens(3, 12))
        losses.append(metrics["loss"].item())
    model.update(state.params)
    assert losses[-1] < losses[0]
    export_adapters(model, tmp_path / "adapters", "d" * 64)
    theirs, _ = load(str(base), adapter_path=str(tmp_path / "adapters"))
    assert_close(theirs(tokens(2, 9)), model(tokens(2, 9)), 1e-4)
    whole = export(fuse_lora(model), tmp_path / "whole", side_files=sides, token_ids={"eos_token_id": [0]})
    assert "model_file" not in json.loads((whole / "config.json").read_text())
    assert_close(load(str(whole))[0](tokens(2, 9)), model(tokens(2, 9)), 1e-5)
    assert_close(kssm_mlx.load(whole).model(tokens(2, 9)), model(tokens(2, 9)), 1e-5)
