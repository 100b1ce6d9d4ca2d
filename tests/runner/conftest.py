"""A base model that counts as verified, and runs that take no longer than what they show."""

from __future__ import annotations

import pytest

from kssm_mlx.checks import suite
from tests.support.compiling import uncompiled
from tests.support.exported import exported, tiny
from tests.support.pretrained_runs import passed


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A few checks, no kernel that costs a second of g++, a memory of verdicts that goes away."""
    monkeypatch.setenv("KSSM_CACHE", str(tmp_path / "cache"))
    few = {"P": ("C16", "C7"), "S": ("C8",)}
    monkeypatch.setattr(suite, "list_suite", lambda level: few.get(level, ()))
    with uncompiled():
        yield


@pytest.fixture
def base_model(tmp_path):
    """A base model folder that counts as verified."""
    folder = exported(tiny("mamba"), tmp_path / "host")
    passed(folder)
    return folder
