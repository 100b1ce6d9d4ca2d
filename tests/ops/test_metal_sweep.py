"""All texts of Metal, all sizes: what `make test` has a part of."""

from __future__ import annotations

import mlx.core as mx
import pytest

from tests.support import metal_sweep

pytestmark = [pytest.mark.linux, pytest.mark.slow]


@pytest.mark.parametrize("op", metal_sweep.OPS)
def test_every_text_is_sound(op):
    row = metal_sweep.sweep(op)
    assert row.ok, {str(dtype): error for dtype, error in row.errors.items()}
    assert row.launches > len(row.texts) >= len(row.kernels)


def test_a_row_that_is_not_sound_says_so():
    assert not metal_sweep.Row("conv", errors={mx.float32: float("nan")}).ok
