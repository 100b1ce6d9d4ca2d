"""A stand-in for `mx.fast.metal_kernel`: kernels written for Metal, checked as text and run on the CPU.

    with metal_text.standing_in():      # gpu.dialect() is "metal", impl="kernel" runs
        ...

It is fed by the real calls, so what is checked is what MLX would hand to Metal's compiler for these arrays:
text (metal_check.py), then run (metal_run.py). What is wrong with a text raises MetalTextError where the
kernel is called; what is wrong with a run is told at the end of the `with`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import mlx.core as mx

from kssm_mlx.ops import gpu, proof
from tests.support import metal_check, metal_run
from tests.support.metal_signature import signature

# What ways of a kernel are timed on here, where times mean nothing.
TIMED = ((1, 1, 2),)
# How often each text was launched in this process.
LAUNCHES: Counter[str] = Counter()


class MetalTextError(Exception):
    """A text or a run that Metal would not take, one line for each fault."""


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
) -> Callable[..., list[mx.array]]:
    """As `mx.fast.metal_kernel`, without what our kernels do not use: templates, atomics, math modes."""

    def call(
        *,
        inputs: Sequence[mx.array],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
        init_value: float | None = None,
    ) -> list[mx.array]:
        made = signature(name, source, input_names, inputs, output_names, output_dtypes)
        text, group = made.text(header, source), tuple(map(min, threadgroup, grid))
        if found := metal_check.faults(text, made, group):
            raise MetalTextError("\n".join(f"{made.name}: {fault}" for fault in found))
        LAUNCHES[text] += init_value is None
        return metal_run.run(made, header, source, inputs, output_shapes, (*grid, *group), init_value == 0)

    return call


@contextmanager
def standing_in() -> Iterator[None]:
    """Kernels are Metal's, through the stand-in.

    Raises: MetalTextError at the end for what runs met: an index outside, an element that was not written.
    """
    metal_run.take_faults()
    gpu._gpu_kernel.cache_clear()
    try:
        with (
            mock.patch.object(mx.fast, "metal_kernel", metal_kernel),
            mock.patch.object(proof, "TIMED", TIMED),
            gpu.use_dialect("metal"),
        ):
            yield
    finally:
        gpu._gpu_kernel.cache_clear()
    if found := metal_run.take_faults():
        raise MetalTextError("\n".join(found))
