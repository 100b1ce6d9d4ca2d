"""What a test asks for is what it gets: the dialect that its kernels are written in."""

from __future__ import annotations

import mlx.core as mx
import pytest

from kssm_mlx.ops import gpu
from tests.support import dialects

SPOKEN = {"cpp": "cpp", "metal-text": "metal", "metal": "metal", "gpu": "cuda"}


@pytest.mark.parametrize("name", SPOKEN)
def test_the_dialect_that_is_asked_for_is_spoken(name):
    """On any machine, and whatever was spoken before: on a Mac all kernel tests depend on it."""
    with gpu.use_dialect(None):
        with dialects.kernels_in(name):
            assert gpu.dialect() == SPOKEN[name]
        assert gpu.dialect() is None


def test_the_fixture_speaks(dialect):
    assert gpu.dialect() == SPOKEN[dialect]


def test_no_dialect_is_forgotten():
    names = [getattr(p, "values", (p,))[0] for p in dialects.PARAMETERS]
    assert names == list(SPOKEN)


def test_a_stand_in_leaves_nothing_behind(monkeypatch):
    usual = lambda **_: None  # noqa: E731
    monkeypatch.setattr(mx.fast, "metal_kernel", usual)
    with dialects.kernels_in("metal-text"):
        assert mx.fast.metal_kernel is not usual
    assert mx.fast.metal_kernel is usual
