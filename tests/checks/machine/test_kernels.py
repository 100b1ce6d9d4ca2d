"""`kssm doctor` on kernels: numbers of every op, and a kernel that disagrees is off, with a reason."""

from __future__ import annotations

import mlx.core as mx
import pytest

from kssm_mlx.checks.machine import kernels
from kssm_mlx.ops import dispatch, gpu, proof, verdicts
from kssm_mlx.ops.dialects import native
from kssm_mlx.ops.proof import Verdict
from tests.support.compiling import uncompiled


@pytest.fixture
def record(tmp_path, monkeypatch):
    """The record of verdicts and the compiled libraries in a folder of their own; small and uncompiled."""
    monkeypatch.setattr(gpu, "_spoken", [None])
    monkeypatch.setattr(verdicts, "_record", lambda: tmp_path / "kernels.json")
    monkeypatch.setattr(kernels, "TIMED", (1, 2, 2))
    dispatch.forget()
    with uncompiled():
        yield tmp_path / "kernels.json"
    dispatch.forget()


def test_every_op_is_told_with_its_numbers(record, monkeypatch):
    few = ("mobius_scan", "conv", "elementary")  # each costs g++ a second
    monkeypatch.setattr(dispatch, "OPS", few)
    monkeypatch.setattr(kernels, "list_dialects", lambda: ["cpp"])
    checks = kernels.examine_kernels()
    assert [c.title for c in checks] == [f"{op} kernel, cpp" for op in few]
    assert {c.verdict for c in checks} == {"pass"}
    assert all(c.got.startswith("error ") and c.numbers["ratio"] > 0 for c in checks)
    assert not record.exists()  # this device speaks nothing: C++ is for telling


def test_verdicts_of_the_cpu_are_remembered_where_it_runs_kernels(record, monkeypatch):
    monkeypatch.setattr(gpu, "_spoken", ["cpp"])
    monkeypatch.setattr(dispatch, "OPS", ("conv",))
    assert [c.verdict for c in kernels.examine_kernels()] == ["pass"]
    assert "conv" in record.read_text()


def test_a_missing_bridge_is_said(record, monkeypatch):
    monkeypatch.setattr(kernels, "list_dialects", lambda: [])
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    monkeypatch.setattr(kernels.sys, "platform", "linux")
    monkeypatch.setattr(native, "why_not", lambda: "g++ is missing")
    (told,) = kernels.examine_kernels()
    assert (told.id, told.verdict) == ("K0", "warn")
    assert "g++ is missing; the compiled forms run" in told.fix


def play_gpu(monkeypatch, verdicts):
    """A GPU whose kernels run, as C++, and get these verdicts."""
    monkeypatch.setattr(gpu, "_spoken", ["metal"])
    monkeypatch.setattr(kernels, "list_dialects", lambda: ["metal"])
    told = {v.op: v for v in verdicts}
    monkeypatch.setattr(dispatch, "OPS", tuple(told))
    monkeypatch.setattr(proof, "prove", lambda op, case, **variant: told[op])
    monkeypatch.setattr(kernels, "measure_speedup", lambda op: 3.0)


def test_a_kernel_that_disagrees_is_off_and_stays_off(record, monkeypatch):
    play_gpu(monkeypatch, [Verdict("conv", False, 0.25, "it differs by 0.25"), Verdict("wkv4", True, 1e-7)])
    wrong, right = kernels.examine_kernels()
    assert (wrong.verdict, right.verdict) == ("warn", "pass")
    assert "it differs by 0.25; it is off on this device, remembered in" in wrong.fix
    assert right.got == "error 1.0e-07, 3.0x as fast as compiled"
    with gpu.use_dialect("metal"):
        assert dispatch.kernel("conv", "auto") is None
        assert dispatch.kernel("wkv4", "auto") is not None


def test_the_way_that_is_fastest_here_is_told(record, monkeypatch):
    play_gpu(monkeypatch, [Verdict("wkv7", True, 1e-7)])
    monkeypatch.setattr(proof, "_seconds", lambda case, way, *_, **__: 1 / way["share"])
    (told,) = kernels.examine_kernels()
    assert told.got == "error 1.0e-07, 3.0x as fast as compiled, share 4"  # of 16 columns
    assert {v.way["share"] for v in verdicts.read_verdicts().values()} == {4, 32}


def test_a_folder_that_cannot_be_written_is_said(record, monkeypatch):
    def refuse():
        raise RuntimeError("chmod 700 it")

    play_gpu(monkeypatch, [Verdict("conv", False, 0.25, "it differs")])
    monkeypatch.setattr(verdicts, "_record", refuse)
    (wrong,) = kernels.examine_kernels()
    assert "not remembered: chmod 700 it" in wrong.fix


@pytest.mark.linux  # where g++ is asked for
def test_dialects_of_this_machine(monkeypatch):
    assert "cpp" in kernels.list_dialects()
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert kernels.list_dialects() == [d for d in [gpu.dialect()] if d]


def test_the_id_of_an_op_is_its_own_for_ever():
    """Old reports name kernels by these; the order of `dispatch.OPS` is nobody's promise."""
    assert kernels.IDS.keys() == set(dispatch.OPS)
    assert len({*kernels.IDS.values()}) == len(kernels.IDS)
    first = {"mobius_scan": "K1", "conv": "K6", "norms": "K10"}
    assert {op: kernels.IDS[op] for op in first} == first
