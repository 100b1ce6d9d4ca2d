import mlx.core as mx
import pytest


@pytest.fixture
def float64():
    """Run on the CPU stream, the only one with float64, and uncompiled: g++ would take longer than these tests."""
    mx.disable_compile()
    with mx.stream(mx.cpu):
        yield
    mx.enable_compile()
