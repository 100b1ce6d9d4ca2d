"""The checks of a machine fire on what they name and leave a sound machine alone."""

from __future__ import annotations

import copy

import mlx.core as mx
import pytest

from kssm_mlx import environment
from kssm_mlx.checks.machine import fitness


@pytest.fixture(scope="module")
def facts() -> dict:
    return environment.facts()


def verdicts(facts: dict) -> dict:
    return {c.id: c for c in fitness.examine_machine(facts)}


def test_this_machine_is_not_broken(facts):
    checks = fitness.examine_machine(facts)
    assert all(c.ok for c in checks) and [c.id for c in checks] == [f"H{n}" for n in range(1, 7)]


@pytest.mark.parametrize("error, verdict", [(1e-3, "warn"), (1e-1, "fail"), (float("nan"), "fail")])
def test_wrong_products_are_caught(monkeypatch, error, verdict):
    right = mx.matmul
    monkeypatch.setattr(mx, "matmul", lambda a, b: right(a, b) * (1 + error))
    check = fitness.products({})
    assert check.verdict == verdict
    assert check.fix


@pytest.mark.parametrize(
    "id, change, fix",
    [
        ("H2", {"blas": {"library": "slow", "how": "bundled", "why": "no g++", "fast": False}}, "no g++"),
        ("H3", {"compiles": False, "compiler": None, "switches": {}}, "install g++"),
        ("H3", {"compiles": False, "switches": {"MLX_DISABLE_COMPILE": "0"}}, "unset MLX_DISABLE_COMPILE"),
        ("H3", {"compiles": False, "compiler": "/bin/g++", "switches": {}}, "/bin/g++ is there but"),
        ("H4", {"packages": {"mlx": "1", "mlx-cpu": "1", "mlx-cuda-12": "1"}}, "reinstall mlx"),
        ("H4", {"packages": {"mlx": "2", "mlx-cpu": "1"}}, "reinstall mlx"),
        ("H4", {"packages": {"mlx": "2"}}, "reinstall mlx"),
        ("H5", {"tf32": True, "device": {"type": "gpu"}}, "MLX_ENABLE_TF32=0"),
        ("H6", {"open_files": {"soft": 256, "hard": -1}}, "ulimit -n"),
    ],
)
def test_each_check_of_the_machine_fires(facts, id, change, fix):
    check = verdicts({**copy.deepcopy(facts), **change})[id]
    assert check.verdict == "warn"
    assert fix in check.fix


@pytest.mark.parametrize("change", [{"tf32": True, "device": {"type": "cpu"}}, {"open_files": {"soft": -1}}])
def test_checks_of_the_machine_leave_the_sound_alone(facts, change):
    healthy = {**facts, "compiles": True, "blas": {**facts["blas"], "fast": True}}
    assert {c.verdict for c in fitness.examine_machine({**healthy, **change})} == {"pass"}


def test_measured_rates_are_rates():
    assert all(0 < rate < 1e6 for rate in fitness.measure_rates().values())
