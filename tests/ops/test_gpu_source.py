"""The sources of the kernels: what all dialects can say, and CUDA's compiled with a stand-in for the device.

Metal's text is compiled and run as "metal-text" (tests/support/metal_text.py).
"""

from __future__ import annotations

import re
import subprocess

import mlx.core as mx
import pytest

from kssm_mlx.ops import gpu
from kssm_mlx.ops.dialects import macros
from kssm_mlx.ops.kernels import (
    ball_scan,
    ball_wells,
    conv,
    elementary,
    expanded_ball,
    expanded_scan,
    kuramoto_bank,
    mobius_scan,
    norms,
    rotor,
    selective_scan,
    token_mix,
    wkv4,
    wkv7,
)

MODULES = (
    *(ball_scan, ball_wells, rotor, conv, expanded_ball, expanded_scan, kuramoto_bank, mobius_scan),
    *(selective_scan, token_mix, wkv4, wkv7),
)


def kernels(*modules) -> dict[str, gpu.Kernel]:
    return {x.name: x for m in modules for x in vars(m).values() if isinstance(x, gpu.Kernel)}


KERNELS = kernels(*MODULES)
# What the device brings.
CUDA = """
#include <stdint.h>
#define __device__
struct __nv_bfloat16 { uint16_t bits; operator float() const; };
struct uint3 { unsigned x, y, z; };
extern const uint3 blockIdx, blockDim, threadIdx;
float expf(float); float sinf(float); float cosf(float); float fmaxf(float, float); float rintf(float);
float sqrtf(float);
unsigned __activemask(); float __shfl_xor_sync(unsigned, float, int);
"""
NUMBERS = {"marks": "uint8_t", "sizes": "int"}


def code(kernel: gpu.Kernel) -> str:
    return re.sub(r"//.*", "", kernel.body)


def function(kernel: gpu.Kernel, name: str) -> str:
    """The kernel as MLX writes it, or nearly."""
    types = {**dict.fromkeys(kernel.inputs.split(), "__nv_bfloat16"), **NUMBERS}
    arguments = [f"const {types[word]}* {word}" for word in ("sizes", *kernel.inputs.split())]
    arguments += [f"float* {word}" for word in kernel.outputs.split()]
    return f"void {name}({', '.join(arguments)}) {{\n{kernel.source('cuda')}\n}}"


def test_cuda_compiles_without_double(tmp_path):
    """All names are defined, all types agree, nothing is promoted to double, which is slow there."""
    constants = {word: 3 for k in KERNELS.values() for word in k.constants.split()}
    parts = [CUDA, macros.HEADERS["cuda"], macros.TOGETHER["cuda"], "#pragma GCC poison double\n"]
    for name, kernel in KERNELS.items():
        mine = {word: constants[word] for word in kernel.constants.split()}
        # Each kernel is a file of its own for MLX; here the shared parts are once in a namespace.
        defines = macros.LOOPS + "".join(f"#define {w} {n}\n" for w, n in {"CHUNK": 16, **mine}.items())
        undefines = "".join(f"#undef {w}\n" for w in ("CHUNK", "FORTH", "BACK", *mine))
        body = f"{kernel.numbers}{function(kernel, name)}"
        parts.append(f"{defines}namespace n_{name} {{\n{body}\n}}\n{undefines}")
    (tmp_path / "all.cpp").write_text("".join(parts))
    flags = ["-std=c++14", "-fsyntax-only", "-Wall", "-Wextra", "-Wdouble-promotion", "-Werror"]
    # A kernel does not use every helper, and UNROLL is for other compilers.
    flags += ["-Wno-unused-function", "-Wno-unknown-pragmas", "-Wno-unused-variable"]
    run = subprocess.run(["g++", *flags, str(tmp_path / "all.cpp")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", KERNELS)
def test_arrays_are_only_indexed(name):
    """A pointer would need the address space, which depends on the array's size."""
    kernel = KERNELS[name]
    for word in f"{kernel.inputs} {kernel.outputs}".split():
        uses = re.findall(rf"(?<![\w.]){word}\b(.?)", code(kernel))
        assert uses, f"{word} is not used"
        assert set(uses) == {"["}, f"{word} is used without an index"


@pytest.mark.parametrize("name", KERNELS)
def test_common_subset(name):
    kernel, text = KERNELS[name], code(KERNELS[name])
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    assert not re.search(r"\b(double|return|static|std|template|auto|threadgroup|atomic\w*)\b|\*\s*\)", text)
    assert not re.findall(r"\d\.\d+(?![\df])|\de-?\d+(?!\d*f)", text), "a literal without f is a double"
    # MLX adds arguments for these words, and for names of thread attributes, wherever they stand.
    assert not re.search(r"_(shape|strides|ndim)\b|thread_|simd|grid", kernel.body)
    words = [
        w for part in (kernel.sizes, kernel.inputs, kernel.outputs, kernel.constants) for w in part.split()
    ]
    assert len(words) == len(set(words))
    assert len(words) <= 31, "Metal binds at most 31 buffers"


def loops(body: str) -> list[tuple[str, str]]:
    """Every loop of a body: what stands before it, and the loop with the statement that it repeats."""
    found = []
    for start in (m.start() for m in re.finditer(r"\bfor \(", body)):
        depth = 0
        for end in range(start, len(body)):
            depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(body[end], 0)
            if depth == 0 and body[end] in ";}":
                break
        found.append((body[:start].rstrip(), body[start : end + 1]))
    return found


def left_in_memory(kernel: gpu.Kernel) -> list[str]:
    """Loops over an array of a lane's own that may stay rolled: the array then leaves its registers."""
    body = code(kernel)
    arrays = "|".join(re.findall(r"(\w+)\[(?:CHUNK|[A-Z])\b[^\]]*\](?=[,;])", body)) or "none"
    return [
        loop.splitlines()[0]
        for before, loop in loops(body)
        if re.search(rf"\b(?:{arrays})\[", loop)
        and constant_trips(kernel, loop)
        and not before.endswith(("UNROLL", "UNROLL_ON_GPU"))
    ]


def constant_trips(kernel: gpu.Kernel, loop: str) -> bool:
    """Whether the number of turns is known where the kernel is compiled."""
    head = loop[: loop.index(")")]
    names = set(re.findall(r"\b[A-Za-z_]\w*", head)) - {"for", "int"}
    counter = re.search(r"int (\w+)", head)[1]
    return names <= {counter, "CHUNK", *kernel.constants.split()}


@pytest.mark.parametrize("name", KERNELS)
def test_arrays_of_a_lane_stay_in_registers(name):
    assert left_in_memory(KERNELS[name]) == []


def test_a_loop_that_is_left_rolled_is_seen(monkeypatch):
    kernel = KERNELS["wkv7_forward"]
    rolled = kernel.body.replace("UNROLL_ON_GPU\n", "")
    monkeypatch.setattr(gpu.Kernel, "body", property(lambda _: rolled))
    assert left_in_memory(kernel) == [
        "for (int j = 0; j < K / SHARE; ++j) s[j] = 0;",
        *["for (int j = 0; j < K / SHARE; j += 4)"] * 2,
    ]


def test_every_letter_is_ascii():
    """Metal's compiler is handed the text as ASCII."""
    texts = [path.read_text() for path in gpu.FOLDER.glob("*.inc")]
    assert all(text.isascii() for text in (*texts, *macros.HEADERS.values(), *macros.TOGETHER.values()))


def test_names_tell_code_apart():
    """MLX keeps compiled kernels by name, so everything the code depends on is in it."""
    kernel = KERNELS["conv_forward"]
    names = {
        kernel.full_name(constants, dtypes)
        for constants in ({"W": 3}, {"W": 4})
        for dtypes in ([mx.float32, mx.float32], [mx.float32, mx.bfloat16])
    }
    assert len(names) == 4


def test_bodies_are_shipped_and_all_used():
    bodies = {path.stem for path in gpu.FOLDER.glob("*.inc")}
    assert bodies == {*KERNELS, *kernels(elementary, norms), "planar", "spatial", "packs"}


@pytest.mark.parametrize("dialect", ["metal", "cuda"])
def test_mlx_accepts_what_it_is_given(dialect, monkeypatch):
    """The call reaches mx.fast with unique names, one thread per lane, and outputs of the promised shapes."""
    told = {}

    def make(**made):
        told.update(made)
        return lambda **call: told.update(call) or [mx.zeros(s) for s in call["output_shapes"]]

    monkeypatch.setattr(gpu, "dialect", lambda: dialect)
    monkeypatch.setattr(mx.fast, f"{dialect}_kernel", make)
    gpu._gpu_kernel.cache_clear()
    x = mx.zeros((2, 5, 3))
    mobius_scan._scan(mx.zeros((2, 3)), mx.zeros((2, 3)), x, x, x, x, mx.ones(1))
    gpu._gpu_kernel.cache_clear()
    assert told["input_names"] == ["sizes", *mobius_scan.FORWARD.inputs.split()]
    assert told["inputs"][0].tolist() == [6, 5, 3]
    assert len(told["inputs"]) == len(told["input_names"])
    assert told["grid"] == (6, 1, 1) and told["threadgroup"] == (6, 1, 1)
    assert macros.LANE[dialect] in told["source"] and "const int G = sizes[2];" in told["source"]
