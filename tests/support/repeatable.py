"""What a test finds is the same whichever came before it, and on whichever worker.

The order is random (pytest-randomly prints its seed, `--randomly-seed=N` repeats it). So that
nothing but the order changes, the random numbers of MLX begin anew with every test and every shared fixture,
and a fixture that outlives a test is made uncompiled, whoever asks for it first.
"""

from __future__ import annotations

import mlx.core as mx
import pytest

from tests.support.compiling import compiles, uncompiled


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Of wider fixtures; those of one test are set up as the test is."""
    if fixturedef.scope == "function":
        return (yield)
    mx.random.seed(0)
    with uncompiled():
        made = yield
    mx.random.seed(0)
    return made


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    mx.random.seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    mx.random.seed(0)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    assert compiles(), f"{item.nodeid} leaves MLX uncompiled for the tests after it"
