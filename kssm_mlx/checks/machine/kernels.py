"""Do the kernels compute here what the compiled forms compute, and how much faster.

Every dialect this machine can run is asked: the one of its default device, and C++ where there is a compiler,
which runs the same bodies on the CPU and so tells a wrong body from a wrong dialect. A kernel that disagrees
is switched off for this device and the compiled form runs in its place, so numbers stay right and the verdict
is "warn".
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace

import mlx.core as mx

from kssm_mlx.checks.core.registry import DOCTOR, Check, check, verdict
from kssm_mlx.checks.machine.fitness import time_shortest
from kssm_mlx.ops import dispatch, gpu, proof, verdicts
from kssm_mlx.ops.dialects import native
from kssm_mlx.ops.proof import Verdict

# Rows, tokens and width of what is timed: enough to be the work and not the launch, and done in a second.
TIMED = (4, 64, 64)
# Stable: a number is never given to another op. A new op takes the next one.
IDS = {
    "mobius_scan": "K1",
    "selective_scan": "K2",
    "wkv4": "K3",
    "wkv7": "K4",
    "ssd": "K5",
    "conv": "K6",
    "kuramoto_bank": "K7",
    "token_mix": "K8",
    "elementary": "K9",
    "norms": "K10",
    "ball_scan": "K11",
    "ball_wells": "K12",
    "rotor": "K13",
    "expanded_scan": "K14",
    "expanded_ball": "K15",
}


def examine_kernels() -> list[Check]:
    """K1, K2, ...: one verdict for every op in every dialect; those of the device's own are remembered."""
    own = gpu.dialect()
    return bridge_builds() + [
        check for dialect in list_dialects() for check in _examine(dialect, dialect == own)
    ]


@check("K0", level=DOCTOR, title="kernels in MLX's graph", source="docs/kernels.md")
def bridge_builds() -> list[Check]:
    """Whether the C++ kernels can be nodes of MLX's graph: g++ and nanobind are there, and what they
    build loads. Asked on a Linux machine without a GPU, and told only where the answer is no.

    Threshold: yes. Without, the compiled forms run: the same numbers, several times slower, so it warns.
    Caught: nothing yet.
    Sabotage: a machine whose g++ is missing.
    """
    if mx.default_device() != mx.cpu or sys.platform != "linux" or not (reason := native.why_not()):
        return []
    fix = f"{reason}; the compiled forms run, several times slower; install g++ and nanobind (pip)"
    return [verdict("K0", "warn", "no", "yes", fix)]


def list_dialects() -> list[str]:
    """What this machine can run: the dialect of its default device first."""
    cpp = "cpp" if sys.platform == "linux" and shutil.which("g++") else None
    return [*dict.fromkeys(d for d in (gpu.dialect(), cpp) if d)]


def _examine(dialect: str, own: bool) -> list[Check]:
    with gpu.use_dialect(dialect):
        proofs = [prove_op(op) for op in dispatch.OPS if dispatch.runs(op)]
        remembered = _remember({name: v for found in proofs for name, v in found.items()}) if own else ""
        worst = [max(found.values(), key=lambda v: (not v.ok, v.error)) for found in proofs]
        return [judge_kernel(v, dialect, remembered) for v in worst]


def prove_op(op: str) -> dict[str, Verdict]:
    """The verdicts on all that the shipped models use of a kernel, by what each holds for."""
    return {verdicts.identity(op, **v): dispatch.judge(op, **v) for v in dispatch.case(op).variants}


def _remember(found: dict[str, Verdict]) -> str:
    """Write the verdicts down; where, or why that was not possible."""
    try:
        return f"remembered in {dispatch.record(found)}"
    except (RuntimeError, OSError) as error:
        return f"not remembered: {error}"


def judge_kernel(v: Verdict, dialect: str, remembered: str) -> Check:
    """A kernel against the compiled form of its op, in every dialect that runs here: outputs and all
    gradients on 12 rows of 37 tokens, 6 and 32 wide, and on 3 lanes of 600 tokens where a GPU cuts time into
    parts, for every head size and number of taps, mixes or steps that the shipped models use, with documents
    and padding inside rows, in float32 and bfloat16; max |Δ| relative to the largest entry of each array,
    against the compiled form in float32. How fast it is beside the compiled form is measured, not judged.

    Threshold: 5e-4 in float32, the order of sums and the last digit of a sine, amplified by coupled phases;
    2^-7 more in bfloat16, two roundings, for a gradient that comes in two ways. One wrong
    term shows as 1e-2 or more. It warns, because a
    kernel that disagrees is switched off on this device and the compiled form runs in its place.
    Caught: nothing yet.
    Sabotage: a kernel that differs by 0.25; one that does not compile.
    """
    title, id = f"{v.op} kernel, {dialect}", IDS[v.op]
    expected = f"<= {proof.TOLERANCE:g}"
    if v.ok:
        ratio = measure_speedup(v.op)
        way = "".join(f", {name} {value}" for name, value in v.way.items())
        got = f"error {v.error:.1e}, {ratio:.1f}x as fast as compiled{way}"
        return replace(verdict(id, "pass", got, expected, ratio=ratio), title=title)
    off = f"it is off on this device, {remembered}" if remembered else "nothing here uses it"
    fix = f"{v.why}; {off}: the compiled form runs. Please report this line"
    return replace(verdict(id, "warn", f"error {v.error:.1e}", expected, fix), title=title)


for _op, _id in IDS.items():
    check(_id, level=DOCTOR, title=f"{_op} kernel", source="docs/kernels.md")(judge_kernel)


def measure_speedup(op: str) -> float:
    """How many times faster than the compiled form the kernel is, forward and backward, called eagerly."""
    case = dispatch.case(op)
    arrays = case.arguments(*TIMED)
    compiled, kernel = (
        time_shortest(lambda form=form: proof.outcome(case, form, arrays, {}))
        for form in ("compiled", "kernel")
    )
    return compiled / kernel
