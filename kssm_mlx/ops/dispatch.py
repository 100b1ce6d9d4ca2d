"""Which form of a recurrence runs: the rule behind `impl`, and which kernels may be trusted.

    "compiled"  pure MLX, everywhere
    "kernel"    the kernel; refused where the default device has none
    "auto"      the kernel where the default device has one and it is trusted there, else the compiled form

A kernel is trusted on a device once it has agreed with the compiled form on it, for what it is compiled for
(its variant: the size of a head, the taps of a convolution). `kssm doctor` measures that for what the shipped
models use and writes the verdicts to the user's cache folder; where no verdict stands, a GPU's kernel proves
itself on small cases when it is first wanted. The C++ dialect, which no driver translates, is trusted once it
could be built: the tests compare it on every change. What failed stays off until kernel, MLX, device or
operating system change; so does, for the session, a kernel that raises after all (`with_fallback`). Of
several ways to run a kernel, a GPU takes the one that it found the fastest (`Case.ways`).

Kernels compute in fp32; float64 is left to the compiled forms that can do it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType

import mlx.core as mx

from kssm_mlx.errors import ConfigError, KssmWarning, nearest
from kssm_mlx.ops import gpu, proof, verdicts
from kssm_mlx.ops.dialects import native
from kssm_mlx.ops.proof import Case, Variant, Verdict

IMPLS = ("auto", "compiled", "kernel")
# Every op that has a kernel, which stands in the module of its name.
OPS = (
    *("mobius_scan", "expanded_scan", "expanded_ball", "ball_scan", "ball_wells", "rotor", "selective_scan"),
    *("wkv4", "wkv7", "ssd"),
    *("conv", "kuramoto_bank", "token_mix", "elementary", "norms"),
)
# Their compiled form is matrix products, which run at another rate than one lane per thread.
COMPILED_BY_DEFAULT = ("ssd",)
# Elsewhere MLX's own functions are as good.
FOR_CPUS = ("elementary", "norms")
# Dialects whose kernels need not agree with the compiled form before their first use, only be there.
PROVEN = ("cpp",)


def kernel(op: str, impl: str, like: mx.array | None = None, **variant: int) -> Callable | None:
    """The kernel form of `op` if `impl` asks for it, None for the compiled form.

    like: one of the arrays [B, T, ...] that are read per token; variant: what the kernel is compiled for.
    Raises: ConfigError for an unknown `impl`, "kernel" where the default device has none, and T = 0.
    """
    if impl not in IMPLS:
        raise ConfigError(f"impl is one of {', '.join(IMPLS)}, got {impl!r}{nearest(str(impl), IMPLS)}")
    if like is not None and like.shape[1] == 0:
        raise ConfigError(f"{op}: there is no token in an array of shape {list(like.shape)}; T must be >= 1")
    double = like is not None and like.dtype == mx.float64
    if impl == "compiled" or (impl == "auto" and (double or op in COMPILED_BY_DEFAULT)):
        return None
    if impl == "auto":
        found = _current_verdict(op, **variant) if runs(op) else None
        return _with_way(_guarded_kernel(op), op, found) if found and found.ok else None
    if not runs(op):
        raise ConfigError(
            f"{op}: impl='kernel' cannot run on {mx.default_device()} ({native.why_not()}); use 'auto'"
        )
    if double:
        raise ConfigError(f"{op}: kernels compute in float32, got float64; use impl='compiled'")
    name = verdicts.identity(op, **variant)
    return _with_way(_kernel(op), op, _found.get(name) or _recorded_verdict(name))


@cache
def module(op: str) -> ModuleType:
    """The kernel of `op` and its `Case`; found by name, because it is built on the op itself."""
    return import_module(f"kssm_mlx.ops.kernels.{op}")


def case(op: str) -> Case:
    """How `op` is called where its forms are compared."""
    return module(op).CASE


def runs(op: str) -> bool:
    """Whether the default device has a dialect that `op` has a kernel in."""
    return gpu.dialect() == "cpp" if op in FOR_CPUS else gpu.dialect() is not None


def _kernel(op: str) -> Callable:
    return getattr(module(op), op)


# ---------------------------------------------------------------------------------------------------------
# Ways of a kernel.

_ways: dict[str, Variant] = {}


@contextmanager
def use_variant(op: str, way: Variant) -> Iterator[None]:
    """Run the kernel of `op` in this way, one of its case's, whatever was found the fastest."""
    before = _ways.get(op)
    _ways[op] = way
    try:
        yield
    finally:
        _ways.pop(op) if before is None else _ways.update({op: before})


def _with_way(kernel: Callable, op: str, found: Verdict | None) -> Callable:
    way = _ways.get(op, found.way if found else {})
    return partial(kernel, **way) if way else kernel


# ---------------------------------------------------------------------------------------------------------
# A kernel that raises.


class _Raised(Exception):
    """A kernel that "auto" chose raised: args are the op and what it raised."""


def with_fallback(op: Callable) -> Callable:
    """An op that goes on with its compiled form where the kernel that "auto" chose raises.

    Where the compiled form does not, the kernel was at fault: it is off from then on, with a warning. This is
    of its forward pass; of one that raises in a backward pass `with_second_try` takes the step again.
    """

    @wraps(op)
    def call(*args, impl: str = "auto", **options):
        try:
            return op(*args, impl=impl, **options)
        except _Raised as raised:
            failure = raised
        # Where this raises as well, the arguments are at fault, and the kernel stays on.
        found = op(*args, impl="compiled", **options)
        _switch_off(*failure.args)
        return found

    return call


@cache
def _guarded_kernel(op: str) -> Callable:
    def call(*args, **options):
        try:
            return _kernel(op)(*args, **options)
        except Exception as error:  # whatever a compiler or a driver raises, the compiled form is there
            raise _Raised(op, error) from error

    return call


def with_second_try(build: Callable[[], Callable]) -> Callable:
    """`build()`, a pure function of arrays, built and called again where a kernel raised in a backward pass.

    That kernel is off from then on, with a warning. build: called anew, so that nothing that MLX has traced
    holds the kernel.
    """
    built = build()

    def call(*args, **options):
        nonlocal built
        for _ in OPS:  # each can be switched off once
            try:
                return built(*args, **options)
            except Exception as error:
                op = _op_of(getattr(error, "kssm_kernel", ""))
                if op is None or (op, gpu.dialect()) in _off:
                    raise
                _switch_off(op, error)
                built = build()
        return built(*args, **options)

    return call


def _op_of(kernel: str) -> str | None:
    """The op whose file holds the kernel of this name."""
    for op in OPS:
        if kernel and any(getattr(value, "name", None) == kernel for value in vars(module(op)).values()):
            return op
    return None


_off: dict[tuple[str, str | None], Verdict] = {}


def _switch_off(op: str, error: Exception) -> None:
    # That this text is too long for it says nothing against the kernel on others.
    if not isinstance(error, gpu.TooLong):
        _off[op, gpu.dialect()] = _warn_if_off(proof.describe_failure(op, error))


# ---------------------------------------------------------------------------------------------------------
# Verdicts.


def is_trusted(op: str, **variant: int) -> bool:
    """Whether the kernel of `op` has agreed with the compiled form on the default device."""
    return _current_verdict(op, **variant).ok


def _current_verdict(op: str, **variant: int) -> Verdict:
    if _off and (off := _off.get((op, gpu.dialect()))):
        return off
    return _verdict(op, verdicts.identity(op, **variant), tuple(variant.items()))


def judge(op: str, **variant: int) -> Verdict:
    """The kernel against the compiled form, on a GPU in each of its ways; the fastest that agrees."""
    if gpu.dialect() == "cpp":
        return proof.prove(op, case(op), **variant)
    return proof.choose(op, case(op), partial(use_variant, op), **variant)


@cache
def _verdict(op: str, identity: str, variant: tuple[tuple[str, int], ...]) -> Verdict:
    # A verdict on disk stands until something in its identity changes; proving anew costs compilations.
    found = _recorded_verdict(identity)
    if found is None and gpu.dialect() in PROVEN:
        found = _warn_if_off(proof.build(op, case(op), **dict(variant)))
    elif found is None:
        found = _warn_if_off(judge(op, **dict(variant)))
    _found[identity] = found
    return found


@cache
def _recorded_verdict(identity: str) -> Verdict | None:
    return verdicts.read_verdicts().get(identity)


# What `_verdict` has found, for those who run a kernel without asking whether it can be trusted.
_found: dict[str, Verdict] = {}


def _warn_if_off(verdict: Verdict) -> Verdict:
    if not verdict.ok:
        said = f"{verdict.op}: the kernel is off ({verdict.why}); see kssm doctor"
        warnings.warn(said, KssmWarning, stacklevel=3)
    return verdict


def record(found: dict[str, Verdict]) -> Path:
    """Remember what `kssm doctor` found, by identity, and go by it.

    Raises: RuntimeError when the user's cache folder cannot be had.
    """
    forget()
    return verdicts.record(found)


def forget() -> None:
    """Ask again about every kernel: the record first, then the kernels themselves."""
    _verdict.cache_clear()
    _recorded_verdict.cache_clear()
    _found.clear()
    _off.clear()
