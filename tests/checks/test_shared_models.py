"""The models that tests of checks share do not depend on who asks for them first."""

import mlx.core as mx
import pytest

from kssm_mlx.checks.core.registry import Context
from tests.checks.conftest import fingerprint, trained_run
from tests.support.compiling import compiling
from tests.support.fakes import TinyRecurrent


def test_compiled_or_not_and_whatever_was_drawn_before_they_have_the_same_bits(prepared):
    """Biases came from MLX's global state, which is seeded by the clock: no two runs had the same model."""
    found = set()
    for compiled in (True, False):
        mx.random.seed(int(compiled))
        with compiling(compiled):
            found.add(fingerprint(trained_run(TinyRecurrent, prepared).model))
    assert len(found) == 1


def test_nobody_writes_to_a_context():
    with pytest.raises(AttributeError, match="cannot assign to field 'seed'"):
        Context().seed = 1
