"""Whether MLX compiles, as tests set it: a stack, so that leaving one setting brings back the one before.

`mx.disable_compile` is one switch for the whole process, and MLX does not say how it stands. A test that
turns it by hand leaves it turned for whoever comes next, and changes the last bits of what that one computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

_settings = [True]


def compiles() -> bool:
    """How the switch stands."""
    return _settings[-1]


def _turn(on: bool) -> None:
    mx.enable_compile() if on else mx.disable_compile()


@contextmanager
def compiling(on: bool) -> Iterator[None]:
    """MLX compiles, or does not, until the end of the block."""
    _settings.append(on)
    _turn(on)
    try:
        yield
    finally:
        _settings.pop()
        _turn(compiles())


def uncompiled():
    """On a cold cache g++ takes longer than most of what is tested."""
    return compiling(False)
