"""The Metal function that MLX writes around a kernel's source, by MLX's rules.

Source: MLX 0.32, mlx/backend/common/metal_kernel.cpp; tests/ops/test_metal_text.py holds this against what
MLX itself writes when a function is exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

# Inputs of fewer elements lie in the constant address space.
SMALL = 8
# What the source may name of the thread it is; MLX passes what is named.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}
TYPES = {
    mx.float32: "float",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.bool_: "bool",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.uint8: "uint8_t",
    mx.uint32: "uint32_t",
}


@dataclass(frozen=True)
class Buffer:
    """One argument of the function that is bound to memory; `of` says of which array it tells the shape."""

    type: str
    name: str
    space: str
    const: bool
    reference: bool = False
    of: str = ""

    def declaration(self, index: int) -> str:
        mark = "&" if self.reference else "*"
        words = f"const {self.space}" if self.const else self.space
        return f"  {words} {self.type}{mark} {self.name} [[buffer({index})]]"


@dataclass(frozen=True)
class Signature:
    """The name of the function and all it is passed."""

    name: str
    buffers: tuple[Buffer, ...]
    attributes: tuple[str, ...]

    def text(self, header: str, source: str) -> str:
        """The function as MLX hands it to Metal's compiler, after its own header."""
        arguments = [buffer.declaration(i) for i, buffer in enumerate(self.buffers)]
        arguments += [f"  {ATTRIBUTES[name]} {name} [[{name}]]" for name in self.attributes]
        joined = ",\n".join(arguments)
        return f"{header}[[kernel]] void {self.name}(\n{joined}) {{\n{source}\n}}\n"


def signature(
    name: str,
    source: str,
    input_names: Sequence[str],
    inputs: Sequence[mx.array],
    output_names: Sequence[str],
    output_dtypes: Sequence[mx.Dtype],
) -> Signature:
    """What MLX passes for these arrays: sizes of an array only where the source names them."""
    buffers = [b for word, x in zip(input_names, inputs, strict=True) for b in _input(word, x, source)]
    buffers += [Buffer(TYPES[d], word, "device", False) for word, d in zip(output_names, output_dtypes)]
    attributes = tuple(word for word in ATTRIBUTES if word in source)
    return Signature(_function_name(name, inputs, output_dtypes), tuple(buffers), attributes)


def _input(name: str, x: mx.array, source: str) -> list[Buffer]:
    space = "constant" if x.size < SMALL else "device"
    own = Buffer(TYPES[x.dtype], name, space, True, reference=x.ndim == 0)
    return [own, *(_told(name, source) if x.ndim else [])]


def _told(name: str, source: str) -> list[Buffer]:
    """Shape, strides and rank of an array."""
    every = [
        Buffer("int", f"{name}_shape", "constant", True, of=name),
        Buffer("int64_t", f"{name}_strides", "constant", True, of=name),
        Buffer("int", f"{name}_ndim", "constant", True, reference=True, of=name),
    ]
    return [buffer for buffer in every if buffer.name in source]


def _function_name(name: str, inputs: Sequence[mx.array], output_dtypes: Sequence[mx.Dtype]) -> str:
    """Unique for the text: types, and how each input is passed."""

    def kind(x: mx.array) -> str:
        return TYPES[x.dtype] + ("s" if x.ndim == 0 else "c" if x.size < SMALL else "")

    return "_".join(["custom_kernel", name, *map(kind, inputs), *(TYPES[d] for d in output_dtypes)])
