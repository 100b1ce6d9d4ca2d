"""A Metal text compiled as C++ and run on the CPU, in MLX's graph, with every index checked.

Body and header are Metal's to the letter; only the arguments are other types, which know how long they are
and whether they have been written (metal_run.inc).
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from math import prod
from pathlib import Path

import mlx.core as mx

from kssm_mlx import _blas
from kssm_mlx.ops.dialects import native
from tests.support.metal_signature import ATTRIBUTES, Buffer, Signature

PRELUDE = Path(__file__).with_suffix(".inc")
SIMD = PRELUDE.with_name("metal_simd.inc")
LIBRARIES = Path(__file__).parents[2] / "build" / "metal-text"
# Products are not contracted: Metal may or may not, and this is the less accurate.
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-w")
# Numbers of the launch before the sizes of the arrays: grid and group, three each, and what outputs hold.
LAUNCH = 7

ONE_BY_ONE = """
uint3 at;
for (at.z = 0; at.z < grid.z; ++at.z)
  for (at.y = 0; at.y < grid.y; ++at.y)
    for (at.x = 0; at.x < grid.x; ++at.x) thread_at(at);
"""
# Groups of one dimension are all that our kernels have.
SIDE_BY_SIDE = """
run_groups(grid, group, thread_at);
"""

THREAD = {
    "thread_position_in_grid": "at",
    "thread_position_in_threadgroup": "{at.x % group.x, at.y % group.y, at.z % group.z}",
    "threadgroup_position_in_grid": "{at.x / group.x, at.y / group.y, at.z / group.z}",
    "thread_index_in_simdgroup": "at.x % group.x % 32",
    "threads_per_threadgroup": "group",
    "threads_per_grid": "grid",
}


def run(
    signature: Signature,
    header: str,
    source: str,
    inputs: Sequence[mx.array],
    shapes: Sequence[tuple[int, ...]],
    launch: Sequence[int],
    zeros: bool = False,
) -> list[mx.array]:
    """The outputs of a launch, fp32, as a node of MLX's graph.

    launch: grid and group, three numbers each; zeros: what outputs hold at first, else what is left is told.
    """
    code = _code(signature, header, source)
    sizes = [x.size for x in inputs] + [prod(shape) for shape in shapes]
    told = mx.array([*launch, zeros, *sizes], mx.int64)
    return native.run(_function(signature.name, code), 1, 1, [told, *inputs], list(shapes))


def scratch(source: str) -> set[str]:
    """Outputs that are a thread's own memory, padded, and read by nobody else."""
    return set(re.findall(r"(\w+)\[OWN\(", source))


def take_faults() -> list[str]:
    """What the runs since the last call met, each with its function; of every library that ran."""
    mx.synchronize()
    found = []
    for name, library in _loaded.items():
        place = (ctypes.c_char * 256).in_dll(library, "fault")
        if place.value:
            found.append(f"{name}: {place.value.decode()}")
            place.value = b""
    return found


def _code(signature: Signature, header: str, source: str) -> str:
    """The prelude, the text with arguments of its own, and the launch."""
    unchecked = scratch(source)
    inputs = [b for b in signature.buffers if b.const]
    outputs = [b for b in signature.buffers if not b.const]
    arguments = [f"const {b.type} {b.name}" if b.reference else f"Input<{b.type}> {b.name}" for b in inputs]
    arguments += [f"Output {b.name}" for b in outputs]
    arguments += [f"{ATTRIBUTES[name]} {name}" for name in signature.attributes]
    views = [_view(i, b) for i, b in enumerate(signature.buffers)]
    passed = [f"{b.name}[0]" if b.reference else b.name for b in signature.buffers]
    passed += [THREAD[name] for name in signature.attributes]
    meets = re.search(r"\bsimd_|_barrier\b", header + source)
    return f"""{PRELUDE.read_text()}
{SIMD.read_text() if meets else ""}
{header}
static void body({", ".join(arguments)}) {{
{source}
}}
extern "C" void launch(int, int, void** arrays) {{
const int64_t* told = (const int64_t*)arrays[0];
const uint3 grid = {{uint(told[0]), uint(told[1]), uint(told[2])}};
const uint3 group = {{uint(told[3]), uint(told[4]), uint(told[5])}};
{" ".join(views)}
{" ".join(f"{b.name}.fill(told[6] ? 0 : of_bits(BLANK));" for b in outputs)}
const auto thread_at = [&](const uint3 at) {{ body({", ".join(passed)}); }};
{SIDE_BY_SIDE if meets else ONE_BY_ONE}
{" ".join(f"{b.name}.check();" for b in outputs if b.name not in unchecked)}
}}
"""


def _view(i: int, b: Buffer) -> str:
    """Array i of the kernel, behind what it is told of the launch."""
    kind, pointer = (f"Input<{b.type}>", f"const {b.type}*") if b.const else ("Output", "float*")
    return f'{kind} {b.name}{{({pointer})arrays[{i + 1}], told[{LAUNCH + i}], "{b.name}"}};'


_loaded: dict[str, ctypes.CDLL] = {}


@cache
def _function(name: str, code: str) -> int:
    """The address of the launch; its library stays loaded."""
    digest = hashlib.sha256("\0".join([code, *FLAGS]).encode()).hexdigest()[:20]
    path = LIBRARIES / f"{digest}.so"
    if not path.exists():
        LIBRARIES.mkdir(parents=True, exist_ok=True)
        _blas.compile_library(code, path, *FLAGS)
    library = _loaded[f"{name} {digest[:6]}"] = ctypes.CDLL(str(path))
    return ctypes.cast(library.launch, ctypes.c_void_p).value
