"""The bridge: kernels as nodes of MLX's graph, on any number of threads, and what happens without it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError, KssmWarning
from kssm_mlx.ops import dispatch, gpu, proof, verdicts
from kssm_mlx.ops.dialects import cpp, native


@pytest.fixture(autouse=True)
def spoken():
    with gpu.use_dialect("cpp"):
        yield


def outcome(op: str, width: int = 32) -> list[mx.array]:
    return proof.outcome(dispatch.case(op), "kernel", dispatch.case(op).arguments(5, 33, width), {})


def same(ours: list[mx.array], theirs: list[mx.array]) -> bool:
    return all(mx.array_equal(x, y).item() for x, y in zip(ours, theirs, strict=True))


@pytest.mark.linux
def test_this_machine_has_it():
    assert native.why_not() == ""


@pytest.mark.linux
def test_a_kernel_is_a_node_of_the_graph(monkeypatch):
    """Nothing is computed while a compiled function is traced, and it is traced once."""
    traces, case = [], dispatch.case("mobius_scan")
    assert all(dispatch.is_trusted(op) for op in ("mobius_scan", "elementary"))  # first uses build and run

    @mx.compile
    def gradients(*arrays):
        traces.append(1)
        return proof.outcome(case, "kernel", list(arrays), {})

    monkeypatch.setattr(mx, "eval", lambda *_: pytest.fail("evaluated while tracing"))
    for seed in range(3):
        arrays = [x * (1 - 0.1 * seed) for x in case.arguments(2, 9, 16)]
        found = gradients(*arrays)
        assert all(
            mx.allclose(x, y, atol=1e-5).item()
            for x, y in zip(found, proof.outcome(case, "kernel", arrays, {}))
        )
    assert len(traces) == 1


@pytest.mark.linux
@pytest.mark.parametrize("op", dispatch.OPS)
@pytest.mark.parametrize("width", [32, 37])
def test_any_number_of_threads_gives_the_same_bits(op, width, monkeypatch):
    """Where a thread begins is where packs begin, and in a row of 37 which lanes are left over."""
    monkeypatch.setattr(cpp, "ALONE", 0)
    found = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(native, "_threads", lambda n=threads: n)
        found.append(outcome(op, width))
    assert all(same(found[0], other) for other in found[1:])


class Widths(gpu.Kernel):
    """What each lane is computed in: a pack's number of lanes, or 1."""

    body = property(lambda self: "y[lane] = float(sizeof(float) / sizeof(scalar));")  # type: ignore[assignment]


@pytest.mark.linux
@pytest.mark.parametrize("width", [1, 15, 16, 37, 258])
def test_a_row_of_any_width_is_computed_in_packs(width):
    """Lane by lane, 258 channels took five times as long as 256."""
    (found,) = Widths("widths", "D", "x", "y", side="D")(
        (mx.zeros((3, width)),), [(3, width)], lanes=3 * width, D=width
    )
    widest = 16 if "avx512f" in cpp._processor() else 8
    packed = width // widest * widest
    expected = [widest] * packed + [1] * (width - packed)
    np.testing.assert_array_equal(np.array(found), [expected] * 3)


@pytest.mark.parametrize("op", ["mobius_scan", "conv"])
def test_without_it_the_same_is_computed_at_once(op, monkeypatch):
    usual = outcome(op)
    monkeypatch.setattr(native, "why_not", lambda: "none")
    monkeypatch.setattr(native, "run", lambda *_: pytest.fail("there is no bridge"))
    assert same(usual, outcome(op))


@pytest.mark.linux
@pytest.mark.parametrize(
    "broken, why",
    [
        ("_library", "g++ is missing"),
        ("_prove", "incompatible function arguments"),
    ],
)
def test_why_not(broken, why, monkeypatch):
    """No compiler, or a binding library that MLX was not built with: a reason, and the compiled forms."""

    def fail(*_):
        raise RuntimeError(why)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(native, broken, fail)
    if broken == "_prove":
        monkeypatch.setattr(native, "_library", lambda: None)
        monkeypatch.setattr(native, "_load", lambda path: None)
    native._bridge.cache_clear()
    monkeypatch.setattr(gpu, "_spoken", [])
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    try:
        assert native.why_not() == f"RuntimeError: {why}"
        assert gpu.dialect() is None
        assert dispatch.kernel("conv", "auto") is None
    finally:
        native._bridge.cache_clear()


@pytest.mark.linux
def test_several_python_threads_at_once():
    """Each evaluates on a stream of its own; the team of threads serves one kernel after the other."""

    def work(_):
        with mx.stream(mx.new_stream(mx.cpu)):
            return [np.array(x) for x in outcome("selective_scan")]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(8)))
    for x, *others in zip(outcome("selective_scan"), *found, strict=True):
        assert all(np.array_equal(x, y) for y in others)


@pytest.mark.linux
@pytest.mark.parametrize("damage", ["no compiler", "a broken library"])
def test_a_kernel_that_cannot_be_built_is_off(damage, tmp_path, monkeypatch):
    """`auto` goes on with the compiled form and says so once; "kernel" is refused in one line."""

    def compile_library(code, path, *flags):
        if damage == "no compiler":
            raise RuntimeError("g++ is missing")
        path.write_bytes(b"not a library")

    monkeypatch.setattr(cpp, "library_folder", lambda: tmp_path)
    monkeypatch.setattr(cpp._blas, "compile_library", compile_library)
    monkeypatch.setattr(verdicts, "_record", lambda: tmp_path / "kernels.json")
    cpp._function.cache_clear()
    dispatch.forget()
    with pytest.warns(KssmWarning, match="conv: the kernel is off .*conv_forward cannot be compiled here"):
        assert dispatch.kernel("conv", "auto") is None
    assert dispatch.kernel("conv", "auto") is None
    with pytest.raises(ConfigError, match=r"conv_forward cannot be compiled here .*; use impl='compiled'"):
        outcome("conv")
    cpp._function.cache_clear()
    dispatch.forget()


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("of(larger(a.v, b.v))", "of(smaller(a.v, b.v))"),
        ("polynomial(r, EXPM1_BY_X, sizeof EXPM1_BY_X / 4)) + power", "r) + power"),
    ],
)
def test_a_wrong_pack_is_seen(right, wrong, tmp_path, monkeypatch, uncompiled):
    """The proof sees what a pack computes."""
    text = cpp.PACKS.read_text()
    assert text.count(right) == 1
    changed = tmp_path / "packs.inc"
    changed.write_text(text.replace(right, wrong))
    monkeypatch.setattr(cpp, "PACKS", changed)
    monkeypatch.setattr(cpp, "library_folder", lambda: tmp_path)
    cpp._function.cache_clear()
    verdict = proof.prove("wkv4", dispatch.case("wkv4"))
    cpp._function.cache_clear()
    assert not verdict.ok
    assert "differs from the compiled form" in verdict.why


def test_packs_overflow_and_underflow_as_single_lanes_do():
    """exp beyond float32 is infinite and below it zero, at any width."""
    x = mx.array([-200.0, -88.0, -87.0, -1.0, 0.0, 88.0, 88.7, 89.0, 200.0, float("nan")])
    found = [_exponentials(x, width) for width in (1, 16)]
    np.testing.assert_allclose(found[0], found[1], rtol=2e-6, atol=2e-38)


def _exponentials(x: mx.array, width: int) -> np.ndarray:
    """exp(x) as the decay of the selective scan, h = exp(dt A) h0 with A = 1 and h0 = 1."""
    n, nothing = x.size, mx.zeros((x.size, 1, 1))
    dt = mx.broadcast_to(x[:, None, None], (n, 1, width))
    kernel = dispatch.kernel("selective_scan", "kernel")
    _, h = kernel(mx.zeros_like(dt), dt, mx.ones((width, 1)), nothing, nothing, mx.ones((n, width, 1)))
    return np.array(h[:, 0, 0])


# A rotor is made of each token alone: of none there are none.
SERIAL = [op for op in dispatch.OPS if op not in (*dispatch.FOR_CPUS, "rotor")]


@pytest.mark.parametrize("op", SERIAL)
def test_no_token_and_no_row(op):
    """Without a token there is nothing to say; without a row the answer is empty."""
    case = dispatch.case(op)
    with pytest.raises(ConfigError, match=rf"{op}: there is no token in an array of shape"):
        case.call(case.op, case.arguments(2, 0, 4), {})
    assert case.call(case.form("kernel"), case.arguments(0, 3, 4), {})[0].size == 0


@pytest.mark.parametrize("given, expected", [("3", 3), ("0", 1)])
def test_threads_can_be_chosen(given, expected, monkeypatch):
    monkeypatch.setenv("KSSM_THREADS", given)
    native._threads.cache_clear()
    assert native._threads() == expected
    native._threads.cache_clear()
