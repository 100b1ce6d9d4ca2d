"""The C++ dialect: a body compiled by g++ for the CPU, neighbouring lanes side by side in vector registers.

The body stands in the library twice: once for a single lane, and once for a pack of them, where `float` means
a register full (`kernels/packs.inc`). Packs are used where neighbouring lanes read neighbouring elements,
which a kernel says by the extent of that neighbourhood (`side`) and by what is apart from it (`apart`).
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from kssm_mlx import _blas
from kssm_mlx._caches import open_library, private_folder
from kssm_mlx.errors import ConfigError
from kssm_mlx.ops.dialects import native

PACKS = Path(__file__).parents[1] / "kernels" / "packs.inc"
TYPES = {mx.float32: "scalar", mx.bfloat16: "bf16", mx.int32: "int32_t", mx.uint8: "uint8_t"}
# Lanes of a pack on the widest machine: threads share out whole packs.
TOGETHER = 16
# Lanes that go through a slab of time together: 2 KB of each token.
BESIDE = 512
# Fewer elements written than this are not worth waking a second thread for.
ALONE = 1 << 14


def run(
    kernel: Any, constants: dict[str, int], inputs: list[mx.array], outputs: list, lanes: int
) -> list[mx.array]:
    """The outputs of all lanes: a node of MLX's graph where there is a bridge, else computed at once."""
    dtypes = tuple(x.dtype for x in inputs)
    function = _function(kernel, kernel.body, tuple(constants.items()), dtypes)
    if native.why_not():
        return _at_once(function, inputs, outputs, lanes)
    together = TOGETHER if sum(map(math.prod, outputs)) >= ALONE else max(lanes, 1)
    return native.run(function, lanes, together, inputs, outputs)


def _at_once(function: int, inputs: list[mx.array], outputs: list, lanes: int) -> list[mx.array]:
    """Without MLX's graph: for tests where there is a compiler, but no bridge."""
    mx.eval(inputs)
    # numpy has no bfloat16; the bits are what is passed.
    taken = [np.ascontiguousarray(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x) for x in inputs]
    given = [np.empty(shape, np.float32) for shape in outputs]
    arrays = (ctypes.c_void_p * (len(taken) + len(given)))(*(x.ctypes.data for x in (*taken, *given)))
    ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(function)(0, lanes, arrays)
    return [mx.array(x) for x in given]


def source(kernel: Any, constants: dict[str, int], dtypes: Sequence[mx.Dtype], name: str) -> str:
    """The library of one kernel: its body for one lane and for a pack, and the loop over both."""
    read = [(word, TYPES[dtype]) for word, dtype in zip(kernel.inputs.split(), dtypes[1:], strict=True)]
    return f"""{PACKS.read_text()}
{kernel.header("cpp", constants)}
{_variant("one", "scalar", kernel, _pointers(kernel, read))}
{_variant("many", "Pack", kernel, _views(kernel, read))}
extern "C" void {name}(const int first, const int last, void** arrays) {{
{_sizes(kernel)}
{_loops(kernel)}
}}
"""


# From lane `first` to `last`: full packs from the start of each row of neighbours, and what a row has left
# over one by one. A pack is computed by whoever has its first lane, so that which lanes are packs, and so
# the last bit, does not depend on where a thread begins.
PACKED = """int lane = first, at = lane % (SIDE);
const int behind = at % LANES;
if (behind && at - behind + LANES <= (SIDE) && lane - behind + LANES <= sizes[0]) {
  lane += LANES - behind;
  at = (at + LANES - behind) % (SIDE);
}
while (lane < last) {
  const bool full = at + LANES <= (SIDE) && lane + LANES <= sizes[0];
  if (full)
    many::body(lane, begin, end, arrays);
  else
    one::body(lane, begin, end, arrays);
  lane += full ? LANES : 1;
  at += full ? LANES : 1;
  if (at == (SIDE)) at = 0;
}
"""


def _loops(kernel: Any) -> str:
    """All lanes through all of T; or many lanes through a few tokens at a time (`slab`)."""
    packs = PACKED.replace("SIDE", kernel.side)
    if not kernel.slab:
        return f"const int begin = 0, end = 0;\n{packs}"
    turns, begin = f"(T + {kernel.slab - 1}) / {kernel.slab}", f"turn * {kernel.slab}"
    if kernel.backwards:
        begin = f"(turns - 1 - turn) * {kernel.slab}"
    return f"""const int turns = {turns}, stop = last;
for (int side = first; side < stop; side += {BESIDE}) {{
const int first = side, last = side + {BESIDE} < stop ? side + {BESIDE} : stop;
for (int turn = 0; turn < turns; ++turn) {{
const int begin = {begin}, end = begin + {kernel.slab} < T ? begin + {kernel.slab} : T;
{packs}}}
}}"""


def _sizes(kernel: Any) -> str:
    first = "const int32_t* sizes = (const int32_t*)arrays[0];\n"
    return first + "".join(
        f"const int {word} = sizes[{i}];\n" for i, word in enumerate(kernel.sizes.split(), 1)
    )


def _pointers(kernel: Any, read: list[tuple[str, str]]) -> str:
    """Every array of the body as a pointer, one lane's own element being where the index says."""
    written = [(word, "scalar") for word in kernel.outputs.split()]
    kinds = [(word, f"const {kind}") for word, kind in read] + written
    return "".join(
        f"{kind}* __restrict {word} = ({kind}*)arrays[{i}];\n" for i, (word, kind) in enumerate(kinds, 1)
    )


def _views(kernel: Any, read: list[tuple[str, str]]) -> str:
    """The same for a pack: the index is that of the first lane, `apart` how far the next ones are."""
    apart = dict(pair.split(":") for pair in kernel.apart.split())
    written = [(word, "scalar") for word in kernel.outputs.split()]
    lines = []
    for i, (word, kind) in enumerate([(w, f"const {k}") for w, k in read] + written, 1):
        if kind.endswith(("scalar", "bf16")):
            lines.append(f"const View<{kind}> {word}{{({kind}*)arrays[{i}], {apart.get(word, 1)}}};\n")
        else:  # marks are the same for all lanes of a pack, which are of one row
            lines.append(f"{kind}* {word} = ({kind}*)arrays[{i}];\n")
    return "".join(lines)


def _variant(space: str, real: str, kernel: Any, arrays: str) -> str:
    """The body in a namespace of its own, where `float` is one lane's or a pack's."""
    return f"""namespace {space} {{
#define float {real}
{kernel.numbers}
static inline void body(const int lane, const int begin, const int end, void** arrays) {{
{_sizes(kernel)}{arrays}{kernel.body}
}}
#undef float
}}
"""


def library_folder() -> Path:
    """Where the compiled libraries are kept between sessions."""
    return private_folder()


@cache
def _function(kernel: Any, body: str, constants: tuple[tuple[str, int], ...], dtypes: tuple) -> int:
    """The address of the compiled function; its library stays loaded.

    body: that of the kernel, so that another body is another function.
    Raises: ConfigError where it cannot be compiled or loaded.
    """
    name = kernel.full_name(dict(constants), dtypes)
    code = source(kernel, dict(constants), dtypes, name)
    try:
        path = (
            library_folder() / f"{name}-{hashlib.sha256((code + _processor()).encode()).hexdigest()[:16]}.so"
        )
        flags = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno")
        library = open_library(path, lambda target: _blas.compile_library(code, target, *flags))
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        return address or 0  # a function has an address; the type of ctypes does not say so
    except (RuntimeError, OSError, AttributeError, subprocess.TimeoutExpired) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{kernel.name} cannot be compiled here ({why}); use impl='compiled'") from None


@cache
def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by machines, an image moved between them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()} {flags}"
