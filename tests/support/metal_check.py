"""What Metal's compiler would refuse of a text, and what it would run wrongly, told without it.

libclang reads the text as C++14, on which Metal's language is built. Address spaces are clang's own; what the
Metal library brings is declared below, no more than that; what Metal has not is poisoned. Every diagnostic
counts, but for those in QUIET.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from tests.support.metal_signature import Signature

BUFFERS = 31
GROUP = 1024

PRELUDE = """
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
typedef unsigned char uint8_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned short ushort;
typedef unsigned uint;
typedef unsigned uint32_t;
typedef __bf16 bfloat16_t;
struct uint3 { uint x, y, z; };
namespace metal {
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
float simd_sum(float);
float simd_shuffle_xor(float, ushort);
float max(float, float);
float rint(float);
namespace precise {
float exp(float);
float sin(float);
float cos(float);
float sqrt(float);
}
}
using namespace metal;
#pragma GCC poison double long try throw catch goto new delete virtual dynamic_cast typeid thread_local
"""

# Attributes are Metal's own; arrays are read by index; a kernel does not use all of its header, and is called
# by nobody else; sizes become floats where a mean is taken.
QUIET = (
    *("unknown-attributes", "unsafe-buffer-usage", "unused-macros", "unused-function"),
    *("missing-prototypes", "implicit-int-float-conversion", "c++98-compat", "c++98-compat-pedantic"),
)
FLAGS = ("-std=c++14", "-nostdinc", "-nostdinc++", "-ffp-contract=off", "-Weverything")


def faults(text: str, signature: Signature, group: Sequence[int]) -> list[str]:
    """Everything that is wrong with a text and the groups that it runs in; nothing where it is sound."""
    found = [f"not ASCII: {c!r}" for c in sorted(set(text)) if not c.isascii()]
    if len(signature.buffers) > BUFFERS:
        found.append(f"{len(signature.buffers)} buffers, Metal binds at most {BUFFERS}")
    threads = group[0] * group[1] * group[2]
    if not 1 <= threads <= GROUP:
        found.append(f"{threads} threads in a group, Metal runs 1 to {GROUP}")
    return found + diagnostics(text)


@cache
def diagnostics(text: str) -> list[str]:
    """What clang says of the text, each with the line that it says it of."""
    from clang.cindex import Index

    # An array that a group shares is static in all but name.
    code = PRELUDE + re.sub(r"^( *)threadgroup (?=\w+ \w+\[)", r"\1static threadgroup ", text, flags=re.M)
    flags = [*FLAGS, *(f"-Wno-{name}" for name in QUIET)]
    unit = Index.create().parse("kernel.cpp", args=flags, unsaved_files=[("kernel.cpp", code)])
    lines = code.splitlines()
    return [f"{d.spelling}: {lines[d.location.line - 1].strip()}" for d in unit.diagnostics]
