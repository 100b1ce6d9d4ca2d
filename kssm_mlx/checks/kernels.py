"""Do the kernels compute here what the compiled forms compute, and how much faster.

Every dialect this machine can run is asked: the one of its default device, and C++ where there is a compiler,
which runs the same bodies on the CPU and so tells a wrong body from a wrong dialect. A kernel that disagrees
is switched off for this device and the compiled form runs in its place, so numbers stay right and the verdict
is "warn".
"""

from __future__ import annotations

import shutil
import sys

import mlx.core as mx

from kssm_mlx.checks.base import Check
from kssm_mlx.checks.host import seconds
from kssm_mlx.ops import dispatch, gpu, native
from kssm_mlx.ops.dispatch import Verdict
from kssm_mlx.ops.kernels import parity

# Rows, tokens and width of what is timed: enough to be the work and not the launch, and done in a second.
TIMED = (4, 64, 64)


def examine() -> list[Check]:
    """K1, K2, ...: one verdict for every op in every dialect; those of the device's own are remembered."""
    own = gpu.dialect()
    return _bridge() + [check for dialect in dialects() for check in _examine(dialect, dialect == own)]


def _bridge() -> list[Check]:
    """K0, on a CPU where kernels could join MLX's graph and cannot."""
    if mx.default_device() != mx.cpu or sys.platform != "linux" or not (reason := native.why_not()):
        return []
    fix = f"{reason}; the compiled forms run, several times slower; install g++ and nanobind (pip)"
    return [Check("K0", "kernels in MLX's graph", "P", "warn", "no", "yes", fix)]


def dialects() -> list[str]:
    """What this machine can run: the dialect of its default device first."""
    return [*dict.fromkeys(d for d in (gpu.dialect(), "cpp" if shutil.which("g++") else None) if d)]


def _examine(dialect: str, own: bool) -> list[Check]:
    with gpu.speaking(dialect):
        verdicts = [parity.prove(op) for op in parity.CASES]
        remembered = _remember(verdicts) if own else ""
        return [_check(i, v, dialect, remembered) for i, v in enumerate(verdicts, 1)]


def _remember(verdicts: list[Verdict]) -> str:
    """Write the verdicts down; where, or why that was not possible."""
    try:
        return f"remembered in {dispatch.record(verdicts)}"
    except (RuntimeError, OSError) as error:
        return f"not remembered: {error}"


def _check(number: int, v: Verdict, dialect: str, remembered: str) -> Check:
    title = f"{v.op} kernel, {dialect}"
    expected = f"<= {parity.TOLERANCES[mx.float32]:g}"
    if v.ok:
        ratio = speed(v.op)
        got = f"error {v.error:.1e}, {ratio:.1f}x as fast as compiled"
        return Check(f"K{number}", title, "P", "pass", got, expected, numbers={"ratio": ratio})
    off = f"it is off on this device, {remembered}" if remembered else "nothing here uses it"
    fix = f"{v.why}; {off}: the compiled form runs. Please report this line"
    return Check(f"K{number}", title, "P", "warn", f"error {v.error:.1e}", expected, fix)


def speed(op: str) -> float:
    """How many times faster than the compiled form the kernel is, forward and backward, called eagerly."""
    case = parity.CASES[op]
    arrays = case.arguments(*TIMED)
    compiled, kernel = (
        seconds(lambda form=form: parity.outcome(case, form, arrays, {})) for form in ("compiled", "kernel")
    )
    return compiled / kernel
