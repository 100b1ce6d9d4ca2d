"""The proof of a kernel covers what dispatch can choose: every variant, both dtypes, time in parts."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest

from kssm_mlx.ops import dispatch, gpu, proof, verdicts
from kssm_mlx.ops.kernels import in_time
from kssm_mlx.ops.proof import Verdict
from tests.support.dialects import kernels_in

OPS = [op for op in dispatch.OPS if op not in dispatch.FOR_CPUS]


@pytest.mark.linux
@pytest.mark.parametrize("op", OPS)
def test_everything_that_doctor_proves_on_a_mac_is_so(op, called):
    """The text of Metal, in every variant and size of the proof; and every kernel of the op is among it, also
    those that only a GPU with few lanes runs.
    """
    case, module = dispatch.case(op), dispatch.module(op)
    with kernels_in("metal-text"):
        verdicts = [dispatch.judge(op, **variant) for variant in case.variants]
    assert [v.why for v in verdicts] == [""] * len(case.variants)
    assert {x.name for x in vars(module).values() if isinstance(x, gpu.Kernel)} <= set(called)


@pytest.mark.parametrize("op", OPS)
def test_time_in_parts_is_proved_where_it_is_used(op):
    cuts = re.search(r"\bin_time\.parts\(", Path(dispatch.module(op).__file__).read_text()) or op == "ssd"
    B, T, width = proof.IN_PARTS
    with gpu.use_dialect("metal"):
        assert in_time.parts(T, B * width) > 1
    assert (proof.IN_PARTS in dispatch.case(op).sizes) == bool(cuts)


@pytest.mark.parametrize(
    "wrong, chosen", [([], 32), ([32], 4), ([4, 32], 1), ([1, 4, 32], 1)], ids=lambda x: str(x)
)
def test_the_fastest_way_that_agrees_is_taken(wrong, chosen, monkeypatch):
    """Here the more lanes, the faster; a way that disagrees is not taken however fast."""
    case, taken = dispatch.case("wkv7"), []
    monkeypatch.setattr(proof, "prove", lambda op, *_, **__: Verdict(op, taken[-1] not in wrong, 0.0))
    monkeypatch.setattr(proof, "_shortest_time", lambda *_, **__: 1 / taken[-1])

    @contextmanager
    def taking(way):
        taken.append(way["share"])
        yield

    verdict = proof.choose("wkv7", case, taking, K=64)
    assert (verdict.way, verdict.ok) == ({"share": chosen}, chosen not in wrong)


def test_a_way_that_raises_on_larger_arrays_is_not_taken(monkeypatch):
    case = dispatch.case("wkv7")
    monkeypatch.setattr(proof, "prove", lambda op, *_, **__: Verdict(op, True, 0.0))

    def least(*_, **__):
        if taken[-1] != 4:
            raise RuntimeError("too large a group")
        return 1.0

    taken = []

    @contextmanager
    def taking(way):
        taken.append(way["share"])
        yield

    monkeypatch.setattr(proof, "_shortest_time", least)
    assert proof.choose("wkv7", case, taking, K=64).way == {"share": 4}


def test_the_way_that_was_found_is_the_one_that_runs(monkeypatch):
    """By "auto" and by "kernel", from the record as well as from a first use."""
    verdict = Verdict("wkv7", True, 0.0, way={"share": 4})
    monkeypatch.setattr(verdicts, "read_verdicts", lambda: {verdicts.identity("wkv7", K=64): verdict})
    dispatch.forget()
    with gpu.use_dialect("metal"):
        found = [dispatch.kernel("wkv7", impl, K=64) for impl in ("auto", "kernel")]
        assert [kernel.keywords for kernel in found] == [{"share": 4}] * 2
        with dispatch.use_variant("wkv7", {"share": 32}):
            assert dispatch.kernel("wkv7", "kernel", K=64).keywords == {"share": 32}
    dispatch.forget()


def test_every_head_size_that_is_shipped_is_proved():
    root = Path(__file__).parents[2]
    models = [root / "kssm_mlx" / "models" / name for name in ("rwkv7.py", "hybrids/parallel.py")]
    texts = [path.read_text() for path in (*models, *(root / "recipes").glob("*.toml"))]
    shipped = {
        int(n) for text in texts for n in re.findall(r"(?<!\w)head_dim\"?(?:: int)?(?: =|:) (\d+)", text)
    }
    assert shipped == {variant["K"] for variant in dispatch.case("wkv7").variants}


def test_a_bf16_bound_is_that_of_its_rounding():
    """Two roundings to 8 bits: what is wrong by one bit more is seen."""
    assert proof.tolerance(mx.bfloat16, 0.0) == 2 * mx.finfo(mx.bfloat16).eps / 2
    assert proof.tolerance(mx.float32) == proof.TOLERANCE


@pytest.mark.linux
@pytest.mark.parametrize("op", OPS)
def test_there_is_room_under_the_bound_in_bf16(op):
    """One more rounding, as Metal's compiled form may do, switches no kernel off."""
    case = dispatch.case(op)
    with kernels_in("metal-text"):
        worst = max(proof.compare(case, *size, dtype=mx.bfloat16) for size in case.sizes)
    assert worst <= proof.tolerance(mx.bfloat16) - proof.ROUNDING / 2
