"""The contenders in torch: that they are there, are of one size, and are measured like ours."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from kssm_mlx.bench import peers
from kssm_mlx.bench.measure import compare
from kssm_mlx.bench.ours import Shape
from kssm_mlx.bench.targets import TORCH

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("mambapy")

SHAPE = Shape(width=64, layers=2, vocabulary=32, batch=1)
COMPILED = "transformers, associative scan"


def build(name: str):
    if name == "mamba.py":
        return peers.mamba_py(SHAPE)
    scans = {"transformers": "", "transformers, mambapy": "mambapy", COMPILED: "associative"}
    return peers.transformers("mamba", SHAPE, scan=scans[name])


def contenders(way) -> dict:
    """Without the one that compiles."""
    ways = partial(peers.mlx_prefill, tokens=SHAPE.tokens(8)), partial(way, tokens=SHAPE.tokens(9))
    found = peers.contenders("mamba", SHAPE, *ways, torch=True, plain=True)
    assert set(found) == {"mlx-lm", *TORCH}
    assert [name for name, c in found.items() if not c.eager] == [COMPILED]
    return {name: found[name] for name in TORCH if name != COMPILED}


@pytest.mark.parametrize("way", [peers.torch_prefill, peers.torch_training])
def test_every_way_to_mamba_runs_and_its_memory_is_seen(way):
    for timing in compare(contenders(way), turns=5, budget=0):
        assert timing.milliseconds > 0 and not timing.failed
        assert 0.1 < timing.peak_megabytes < 10


def test_all_ways_have_as_many_parameters():
    assert len({sum(p.numel() for p in build(name).parameters()) for name in TORCH}) == 1


def test_mamba_py_is_transformers_model():
    """The same logits with the same weights."""
    theirs, model = build("transformers, mambapy").eval(), build("mamba.py").eval()
    weights = theirs.backbone.state_dict()
    renamed = {"embeddings.": "embedding.", "norm_f.": "norm.", "layers.": "layers.layers."}
    for old, new in renamed.items():
        weights = {new + k[len(old) :] if k.startswith(old) else k: v for k, v in weights.items()}
    model.load_state_dict(weights)
    ids = torch.from_numpy(np.array(SHAPE.tokens(8))).long()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits)


def test_peak_is_of_what_is_held_at_a_time():
    def one_after_the_other():
        for _ in range(3):
            torch.zeros(1_000_000)

    def together():
        return [torch.zeros(1_000_000) for _ in range(3)]

    assert peers.torch_peak(one_after_the_other) == 4_000_000
    assert peers.torch_peak(together) == 12_000_000
    assert peers.torch_peak(lambda: None) == 0


@pytest.mark.slow
def test_the_compiled_scan_gives_the_logits_of_the_loop():
    model, ids = build(COMPILED).eval(), torch.from_numpy(np.array(SHAPE.tokens(8))).long()
    loop = build("transformers").eval()
    loop.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, loop(ids).logits)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


@pytest.mark.slow
def test_a_compiler_that_fails_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere"))
    contender = peers.torch_prefill(build(COMPILED), SHAPE.tokens(8))
    (timing,) = compare({COMPILED: contender}, turns=5, budget=0)
    assert "No working C++ compiler" in timing.failed


def test_an_old_torch_would_unroll_the_loop_and_is_left_out(monkeypatch):
    assert peers.has_associative_scan()
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.8.0"))
    assert not peers.has_associative_scan()
    nothing = lambda model: None  # noqa: E731
    found = peers.contenders("mamba", SHAPE, nothing, nothing, torch=True, plain=True)
    assert set(found) == {"mlx-lm", *TORCH} - {COMPILED}
