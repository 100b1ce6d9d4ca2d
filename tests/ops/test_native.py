"""The bridge: kernels as nodes of MLX's graph, on any number of threads, and what happens without it."""

from __future__ import annotations

import sys

import mlx.core as mx
import pytest

from kssm_mlx.ops import cpp, dispatch, gpu, native
from kssm_mlx.ops.kernels import parity

linux = pytest.mark.skipif(sys.platform != "linux", reason="the bridge is for Linux")


@pytest.fixture(autouse=True)
def spoken():
    with gpu.speaking("cpp"):
        yield


def outcome(op: str, width: int = 32) -> list[mx.array]:
    return parity.outcome(parity.CASES[op], "kernel", parity.CASES[op].arguments(5, 33, width), {})


def same(ours: list[mx.array], theirs: list[mx.array]) -> bool:
    return all(mx.array_equal(x, y).item() for x, y in zip(ours, theirs, strict=True))


@linux
def test_this_machine_has_it():
    assert native.why_not() == ""


@linux
def test_a_kernel_is_a_node_of_the_graph(monkeypatch):
    """Nothing is computed while a compiled function is traced, and it is traced once."""
    traces, case = [], parity.CASES["mobius_scan"]

    @mx.compile
    def gradients(*arrays):
        traces.append(1)
        return parity.outcome(case, "kernel", list(arrays), {})

    monkeypatch.setattr(mx, "eval", lambda *_: pytest.fail("evaluated while tracing"))
    for seed in range(3):
        arrays = [x * (1 - 0.1 * seed) for x in case.arguments(2, 9, 16)]
        found = gradients(*arrays)
        assert all(
            mx.allclose(x, y, atol=1e-5).item()
            for x, y in zip(found, parity.outcome(case, "kernel", arrays, {}))
        )
    assert len(traces) == 1


@linux
@pytest.mark.parametrize("op", ["mobius_scan", "selective_scan", "wkv7"])
def test_any_number_of_threads_gives_the_same_bits(op, monkeypatch):
    monkeypatch.setattr(cpp, "ALONE", 0)
    found = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(native, "threads", lambda n=threads: n)
        found.append(outcome(op))
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("op", ["mobius_scan", "conv"])
def test_without_it_the_same_is_computed_at_once(op, monkeypatch):
    usual = outcome(op)
    monkeypatch.setattr(native, "why_not", lambda: "none")
    monkeypatch.setattr(native, "run", lambda *_: pytest.fail("there is no bridge"))
    assert same(usual, outcome(op))


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


@pytest.mark.parametrize("given, expected", [("3", 3), ("0", 1)])
def test_threads_can_be_chosen(given, expected, monkeypatch):
    monkeypatch.setenv("KSSM_THREADS", given)
    native.threads.cache_clear()
    assert native.threads() == expected
    native.threads.cache_clear()
