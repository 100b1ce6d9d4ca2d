"""Whether a kernel computes what the compiled form of its op computes: values and every gradient.

The tests, `kssm doctor` and the first use of a kernel all run this, on lengths that no chunk divides, with
documents and padding inside rows, in both dtypes. It knows no op: a `Case`, which stands beside the kernel in
`kernels/<op>.py`, says how to call one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import mlx.core as mx

Arrays = list[mx.array]
# What a kernel is compiled for beside its dtypes, such as the size of a head.
Variant = dict[str, int]

# Of fp32: forms differ by the order of sums and the last digit of a sine, which coupled phases amplify a
# hundred times. One wrong term shows as 1e-2 or more.
TOLERANCE = 5e-4
# Half the distance of two bf16 numbers, relative to them. A result is rounded once, at the end, and once more
# where a gradient comes in two ways, such as that of an input which is also kept for the next call.
ROUNDING, ROUNDINGS = 2.0**-8, 2

# Rows, tokens and widths: more lanes than a group has threads, a length that no chunk divides; in C++ one
# lane at a time, then packs of them on several threads.
SIZES = ((12, 37, 6), (12, 37, 32))
# So few lanes and so many tokens that a GPU goes through them in parts (`kernels/in_time.py`).
IN_PARTS = (3, 600, 1)
# What ways of a kernel are timed on: one token and a prompt, of as many rows as a model has heads.
TIMED = ((16, 1, 64), (16, 128, 64))


@dataclass(frozen=True)
class Verdict:
    """Whether an op's kernel agreed with its compiled form; why not, where it did not.

    error: the largest in fp32, relative to the largest value of each array; way: the fastest of the kernel's.
    """

    op: str
    ok: bool
    error: float
    why: str = ""
    way: Variant = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """How to call an op and its kernel on arrays of any size.

    op: its forms "compiled" and "kernel" take `impl`; arguments(B, T, width, **variant) -> the
    differentiable arrays, those read per token first, `moving` of them; call(op, arrays, masks) -> outputs
    that all forms share. sizes: of the proof, B, T and width each; variants: those that the shipped models
    use; options: what the op itself is told of a variant, with the values where the variant is silent;
    ways(**variant): how a GPU may run the kernel to the same end, of which the fastest is taken.
    """

    op: Callable
    arguments: Callable[..., Arrays]
    moving: int
    call: Callable[[Callable, Arrays, dict], Arrays]
    reference: Callable | None = None
    masked: bool = True
    sizes: tuple[tuple[int, int, int], ...] = SIZES
    variants: tuple[Variant, ...] = ({},)
    options: Variant = field(default_factory=dict)
    ways: Callable[..., tuple[Variant, ...]] = lambda **variant: ({},)

    def form(self, name: str, **variant: int) -> Callable:
        """One of "reference", "compiled" and "kernel", to be called as the op is."""
        options = {key: variant.get(key, value) for key, value in self.options.items()}
        if name == "reference" and self.reference:
            return partial(self.reference, **options)
        return partial(self.op, impl="compiled" if name == "reference" else name, **options)

    def inputs(self, B: int, T: int, width: int, dtype: mx.Dtype, **variant: int) -> Arrays:
        """The arguments, those read per token in `dtype`."""
        mine = {key: value for key, value in variant.items() if key not in self.options}
        arrays = self.arguments(B, T, width, **mine)
        return [x.astype(dtype) if i < self.moving else x for i, x in enumerate(arrays)]


def outcome(
    case: Case, form: str, arrays: Arrays, masks: dict, *, dtype=mx.float32, **variant: int
) -> Arrays:
    """Outputs, then the gradients in all arrays of a random linear function of the outputs.

    dtype: that the random function can be written in, so that no form rounds it.
    """
    run = partial(_call, case, case.form(form, **variant), masks)
    shapes = [x.shape for x in run(*arrays)]
    pulls = [normal(90 + i, *shape).astype(dtype).astype(mx.float32) for i, shape in enumerate(shapes)]
    outputs, slopes = mx.vjp(run, arrays, pulls)
    return [*outputs, *slopes]


def _call(case: Case, form: Callable, masks: dict, *arrays: mx.array) -> Arrays:
    return case.call(form, list(arrays), masks if case.masked else {})


def compare(
    case: Case,
    B: int,
    T: int,
    width: int,
    *,
    dtype=mx.float32,
    masked: bool = True,
    against: str = "compiled",
    **variant: int,
) -> float:
    """The largest difference of any output or gradient, relative to that array's largest; NaN if any is.

    The other form computes in fp32 whatever `dtype` is: what is measured is then the kernel's rounding alone.
    """
    arrays, masks = case.inputs(B, T, width, dtype, **variant), documents(B, T) if masked else {}
    ours = outcome(case, "kernel", arrays, masks, dtype=dtype, **variant)
    wide = [x.astype(mx.float32) for x in arrays]
    theirs = outcome(case, against, wide, masks, dtype=dtype, **variant)
    return _worst_error(_distance(x, y, arrays[0].size) for x, y in zip(ours, theirs, strict=True))


def tolerance(dtype: mx.Dtype, fp32: float = TOLERANCE) -> float:
    """What may differ: in bf16 what it rounds, on top of what may differ in fp32."""
    return fp32 + (ROUNDINGS * ROUNDING if dtype == mx.bfloat16 else 0)


def _worst_error(errors: Iterable[float]) -> float:
    """The largest; NaN if any is."""
    return max(errors, key=lambda e: (e != e, e))


def _distance(x: mx.array, y: mx.array, terms: int) -> float:
    """The largest difference, relative to the largest value.

    A gradient that is one number is a sum of as many terms as there are inputs, of unit size and either sign:
    it is held against its standard deviation, and not against what they happen to leave of each other.
    """
    if x.shape != y.shape:
        return float("inf")
    x, y = x.astype(mx.float32), y.astype(mx.float32)
    least = math.sqrt(terms) if y.ndim == 0 else 1e-3
    ratio: Any = (mx.abs(x - y).max() / mx.maximum(mx.abs(y).max(), least)).item()
    return float(ratio)


# Told a way, makes the kernel take it.
Taking = Callable[[Variant], AbstractContextManager]


def choose(op: str, case: Case, taking: Taking, **variant: int) -> Verdict:
    """The verdict of the fastest way that agrees with the compiled form; of the first where none does."""
    found = [_judge(op, case, way, taking, **variant) for way in case.ways(**variant)]
    sound = [v for v in found if v.ok] or found[:1]
    if len(sound) == 1:
        return sound[0]
    return min(sound, key=lambda v: _seconds(case, v.way, taking, **variant))


def _judge(op: str, case: Case, way: Variant, taking: Taking, **variant: int) -> Verdict:
    with taking(way):
        return replace(prove(op, case, **variant), way=way)


def _seconds(case: Case, way: Variant, taking: Taking, **variant: int) -> float:
    """The geometric mean over TIMED of what values and gradients take, the least of three each.

    Of a way that agrees on small arrays and raises on these: infinite.
    """
    try:
        with taking(way):
            times = [_shortest_time(case, *size, **variant) for size in TIMED]
    except Exception:  # as in `prove`
        return math.inf
    return math.prod(times) ** (1 / len(times))


def _shortest_time(case: Case, B: int, T: int, width: int, **variant: int) -> float:
    arrays, times = case.inputs(B, T, width, mx.float32, **variant), []
    for _ in range(4):  # the first one compiles
        start = time.perf_counter()
        mx.eval(outcome(case, "kernel", arrays, {}, dtype=mx.float32, **variant))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def prove(op: str, case: Case, **variant: int) -> Verdict:
    """The verdict of small cases in both dtypes; a kernel that does not even compile gets one too."""
    try:
        errors = {
            dtype: _worst_error(
                compare(case, *size, dtype=dtype, masked=True, against="compiled", **variant)
                for size in case.sizes
            )
            for dtype in (mx.float32, mx.bfloat16)
        }
    except Exception as error:  # whatever a compiler or a driver raises, the compiled form is there
        return describe_failure(op, error)
    ok = all(error <= tolerance(dtype) for dtype, error in errors.items())
    return Verdict(op, ok, errors[mx.float32], "" if ok else _disagreement(errors))


def build(op: str, case: Case, **variant: int) -> Verdict:
    """The verdict of a kernel that only has to be there: built, forward and backward, and run once."""
    try:
        arrays = case.inputs(1, 2, 2, mx.float32, **variant)
        mx.eval(outcome(case, "kernel", arrays, {}, dtype=mx.float32, **variant))
    except Exception as error:  # as in `prove`
        return describe_failure(op, error)
    return Verdict(op, True, 0.0)


def describe_failure(op: str, error: Exception) -> Verdict:
    """The verdict of a kernel that raised."""
    why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return Verdict(op, False, float("inf"), why)


def _disagreement(errors: dict) -> str:
    return "it differs from the compiled form by " + " and ".join(
        f"{error:.1e} in {str(dtype).split('.')[-1]}" for dtype, error in errors.items()
    )


# ---------------------------------------------------------------------------------------------------------
# What cases are made of.


def normal(seed: int, *shape: int) -> mx.array:
    """Standard normal numbers, the same for the same seed."""
    return mx.random.normal(shape, key=mx.random.key(seed))


def documents(B: int, T: int) -> dict[str, mx.array]:
    """Some documents begin inside rows, also two in a row; the last row is padded."""
    resets = mx.random.uniform(shape=(B, T), key=mx.random.key(70)) < 0.1
    return {"resets": resets, "lengths": mx.array([T] * (B - 1) + [T // 2 + 1])}


def valid(y: mx.array, masks: dict) -> mx.array:
    """Outputs in the padding mean nothing and are not compared."""
    if "lengths" not in masks:
        return y
    inside = mx.arange(y.shape[1]) < masks["lengths"][:, None]
    return mx.where(inside.reshape(*inside.shape, *[1] * (y.ndim - 2)), y, 0).astype(mx.float32)
