import mlx.core as mx
import pytest


@pytest.fixture(autouse=True)
def plain_steps(uncompiled):
    """Every truth is computed uncompiled, but where a test turns compiling on."""


@pytest.fixture
def float64():
    """Run on the CPU stream, the only one with float64."""
    with mx.stream(mx.cpu):
        yield
