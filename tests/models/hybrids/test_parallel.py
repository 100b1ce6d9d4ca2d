"""RWKV ⊕ Mamba: every fusion and pattern keeps the promises; counts are true; a branch can be taken out."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.models import build, configure
from kssm_mlx.models.base import Clamp, Intervention
from kssm_mlx.models.hybrids.fusions import FUSIONS
from kssm_mlx.models.hybrids.parallel import Hybrid, HybridConfig
from tests.support import model_contract
from tests.support.model_contract import V, count, moved, tokens
from tests.support.small_kssm import assert_close

pytestmark = pytest.mark.usefixtures("uncompiled")
SMALL = {"d_model": 16, "n_layers": 2, "head_dim": 8, "mamba_head_dim": 8, "state_size": 4, "mlp_ratio": 2}
VARIANTS = {
    **{fusion: {"fusion": fusion} for fusion in FUSIONS},
    "published": {"rwkv": "published", "fusion": "hy"},
    "R": {"pattern": "R"},
    "M": {"pattern": "M", "tie_embeddings": False},
    "interleaved": {"pattern": "MPR", "n_layers": 3},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def small(name: str, **overrides) -> Hybrid:
    return build(HybridConfig(**{"vocab_size": V, **SMALL, **VARIANTS[name], **overrides}), seed=1)


@every_variant
@pytest.mark.parametrize(
    "promise",
    [
        model_contract.assert_cuts_do_not_matter,
        model_contract.assert_rows_are_alone,
        model_contract.assert_documents_are_alone,
        model_contract.assert_no_future,
        model_contract.assert_checkpoints_change_nothing,
    ],
)
def test_a_hybrid_keeps_the_promises_of_a_recurrence(name, promise):
    promise(moved(small(name)))


@every_variant
def test_gradients_are_finite_everywhere_and_the_fresh_loss_is_the_uniform_one(name):
    """Also at the start, where norms divide branches that have hardly begun."""
    model_contract.assert_learns(moved(small(name)), small(name))


@pytest.mark.parametrize("fusion", ["hy", "fixed", "ws", "gf", "hgf", "gru", "mingru"])
@pytest.mark.parametrize("share", [0.03, 0.3, 0.7, 0.97])
def test_the_share_that_is_asked_for_is_the_share_at_the_start(fusion, share):
    """However loud a branch is: GroundThink's GF began at .70 where .3 was asked for."""
    model = small(fusion, share=share)
    model.layers[0].rwkv.o_proj.weight = 100 * model.layers[0].rwkv.o_proj.weight
    trace = model.forward(tokens(2)).trace
    for block in ("block00", "block01"):
        gate = trace[f"{block}/gate"]
        assert gate.shape[:2] == (2, model_contract.T) and gate.shape[2] in (1, 16)
        np.testing.assert_allclose(gate, share, atol=1e-5)


@pytest.mark.parametrize("name", [*FUSIONS, "interleaved"])
def test_a_clamped_branch_is_a_branch_without_output(name):
    """N5: R = 0 by a clamp is R = 0 by its weights; the other branch and the states are as they were."""
    model, x = moved(small(name)), tokens(2)
    held = model.forward(x, intervention=Intervention((Clamp("rwkv", 0.0),)))
    assert held.trace["intervention"] == ["rwkv=0 block=all units=all tokens=0: readout"]
    silent = moved(small(name))
    for block in silent.layers:
        if "rwkv" in block:
            block.rwkv.o_proj.weight = mx.zeros_like(block.rwkv.o_proj.weight)
    expected = silent.forward(x)
    assert_close(held.logits, expected.logits)
    assert_close(held.cache, expected.cache)
    one = model.forward(x, intervention=Intervention((Clamp("mamba", 0.0, block=1, start=9),)))
    assert mx.array_equal(one.logits[:, :9], model(x)[:, :9]).item()
    assert mx.abs(one.logits[:, 9] - model(x)[:, 9]).max().item() > 1e-4


def test_a_state_is_set_in_the_cache_and_not_by_a_clamp():
    model, x = moved(small("gf")), tokens(2)
    state = model.forward(tokens(2, seed=5)).cache
    emptied = [[mx.zeros_like(a) if slot == "mamba" else a for slot, a in zip(model.slots_of(0), entry)]
               for entry in state]  # fmt: skip
    assert model.slots_of(0) == ("conv", "mamba", "shift", "rwkv")
    change = mx.abs(model.forward(x, emptied).logits - model.forward(x, state).logits)
    assert change.max().item() > 1e-4
    with pytest.raises(ConfigError, match="'mamba' can be held where='readout' only"):
        model.forward(x, intervention=Intervention((Clamp("mamba", 0.0, where="state"),)))


@pytest.mark.parametrize(
    "pattern, kinds", [("P", "PPPPPPPP"), ("RM", "RMRMRMRM"), ("RRRM", "RRRMRRRM"), ("RRRRMMMM", "RRRRMMMM")]
)
def test_a_pattern_is_repeated_over_the_layers(pattern, kinds):
    model = Hybrid(HybridConfig(V, d_model=32, n_layers=8, head_dim=16, mamba_head_dim=16, pattern=pattern))
    assert model.args.kinds == kinds
    built = ["P" if "fusion" in b else "R" if "rwkv" in b else "M" for b in model.layers]
    assert "".join(built) == kinds
    # RWKV-7's first layer has no value mix; the others do, wherever they stand.
    assert ["v_lora" in b.rwkv for b in model.layers if "rwkv" in b] == [False] + [True] * (
        sum(kind in "RP" for kind in kinds) - 1
    )


def test_the_trace_names_both_branches():
    model, x = small("gf"), tokens(2)
    trace = model.forward(x).trace
    assert {f"block01/{name}" for name in ("rwkv", "mamba", "gate", "decay", "dt", "state")} <= trace.keys()
    assert trace["block00/rwkv"].shape == trace["block00/mamba"].shape == (2, model_contract.T, 16)
    for name in ("rwkv_decay", "mamba_decay"):
        assert 0 < trace[f"block00/{name}"].min().item() <= trace[f"block00/{name}"].max().item() < 1


def test_the_two_branches_start_equally_loud():
    """Symmetric pure mixers: GroundThink's R was 28 to 71 times louder than its M, by construction."""

    def ratio(model):
        trace = model.forward(mx.random.randint(0, 64, (2, 64), key=mx.random.key(0))).trace
        return (mx.std(trace["block00/rwkv"]) / mx.std(trace["block00/mamba"])).item()

    assert 0.5 < ratio(build(configure("hybrid", "xs", vocab_size=64))) < 2
    assert ratio(build(configure("hybrid", "xs", vocab_size=64, overrides={"rwkv": "published"}))) > 3


def test_the_published_branch_is_the_recurrence_on_paper():
    model, n = moved(small("published", n_layers=1)), mx.random.normal((1, 9, 16), key=mx.random.key(4))
    branch = model.layers[0].rwkv
    u = branch.norm1(n)
    r, k, v = (np.array(w(u))[0].reshape(9, 2, 8) for w in (branch.receptance, branch.key, branch.value))
    decay, bonus = (np.array(z).reshape(2, 8) for z in (mx.exp(-mx.exp(branch.log_rate)), branch.bonus))
    S, o = np.zeros((2, 8, 8)), []
    for t in range(9):
        write = v[t][:, :, None] * k[t][:, None]
        o.append(((S + bonus[:, None] * write) @ r[t][:, :, None]).squeeze(-1))
        S = S * decay[:, None] + write
    a = n + branch.output(mx.sigmoid(branch.receptance(u)) * mx.array(np.stack(o).reshape(1, 9, 16)))
    expected = a + branch.down(mx.square(mx.maximum(branch.up(branch.norm2(a)), 0)))
    y, state, _, _ = branch(n, [None], None, None, None)
    assert_close(y, expected)
    assert_close(state[0][0], S)


# (size, fusion, vocabulary): all parameters of the published models, docs/background/hybrids.md#sizes.
PUBLISHED = {
    ("xs", "hy", 97): 474_264,
    ("s", "hy", 97): 3_585_376,
    ("s", "ws", 97): 3_581_288,
    ("s", "gf", 97): 3_583_336,
    ("s", "rf", 97): 3_712_352,
    ("s", "cp", 97): 3_843_424,
    ("s", "hgf", 97): 3_844_448,
    ("s", "gru", 97): 4_768_104,
    ("s", "hy", 16_000): 5_620_960,
    ("m", "gf", 97): 7_931_416,
    ("l", "hy", 97): 11_892_312,
}
# Without the embedding, at d_model 128 and 8 layers.
OURS = {
    "hy": 2_851_936,
    "gf": 2_849_896,
    "gru": 4_034_664,
    "mingru": 3_637_864,
    "R": 1_908_736,
    "M": 1_989_856,
}


@pytest.mark.parametrize("size, fusion, vocabulary", PUBLISHED)
def test_the_published_models_have_their_parameters(size, fusion, vocabulary):
    """SMALL is 3,572,960 beside its embedding, "3.84M" with HGF, "4.8M" with GRU; MEDIUM is "7.93M"."""
    options = {"rwkv": "published", "fusion": fusion}
    model = Hybrid(configure("hybrid", size, vocab_size=vocabulary, overrides=options))
    assert count(model) == PUBLISHED[size, fusion, vocabulary]


@pytest.mark.parametrize("name", OURS)
def test_the_symmetric_models_have_these_parameters(name):
    change = {"pattern": name} if name in "RM" else {"fusion": name}
    config = configure("hybrid", "s", vocab_size=97, overrides=change)
    assert count(Hybrid(config), but="embedding") == OURS[name]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pattern": "RA"}, "model.pattern is made of R, M and P, such as \"RM\", got 'RA'"),
        ({"share": 1.0}, "model.share is between 0 and 1, got 1"),
        ({"head_dim": 7}, "model.head_dim 7 does not divide 16 channels"),
        ({"mamba_head_dim": 7}, "model.mamba_head_dim 7 does not divide 32 channels"),
    ],
)
def test_what_cannot_be_built_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        small("gf", **change)
