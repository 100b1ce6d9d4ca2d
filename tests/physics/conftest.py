import mlx.core as mx
import pytest


@pytest.fixture(autouse=True)
def uncompiled():
    """On a fresh machine g++ takes longer to compile a step than most of these tests take to run it."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture
def float64():
    """Run on the CPU stream, the only one with float64."""
    with mx.stream(mx.cpu):
        yield
