"""The models that tests of checks share do not depend on who asks for them first."""

import pytest

from kssm_mlx.checks.core.registry import Context
from tests.checks.conftest import fingerprint, trained_run
from tests.support.compiling import compiling
from tests.support.fakes import TinyRecurrent


def test_compiled_or_not_they_have_the_same_bits(prepared):
    found = set()
    for compiled in (True, False):
        with compiling(compiled):
            found.add(fingerprint(trained_run(TinyRecurrent, prepared).model))
    assert len(found) == 1


def test_nobody_writes_to_a_context():
    with pytest.raises(AttributeError, match="cannot assign to field 'seed'"):
        Context().seed = 1
