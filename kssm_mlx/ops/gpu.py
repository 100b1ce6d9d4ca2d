"""One kernel body, three dialects: Metal and CUDA for GPUs, C++ for Linux CPUs.

A body (`kernels/*.inc`) is plain C: one lane of the recurrence per thread, time serial, no communication
between threads but for sums over lanes that share a row (`together`). It reads and writes arrays by index
only, so that it does not matter whether Metal puts them in `device` or `constant` memory, and it says EXP,
DECAY (of x <= 88), SIN, COS, SQRT, IF_LESS, MAX, ROUND, UNROLL, UNROLL_ON_GPU (where a lane's own arrays
would else leave its registers), FUNCTION, OWN (where a lane's scratch is), BEGIN and END (of its tokens)
where the dialects differ. What a dialect adds is `lane`, the sizes, and the signature; MLX writes those for
Metal and CUDA, `dialects/cpp.py` for C++.

Which op uses its kernel when is decided in `dispatch.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops.dialects import cpp, native
from kssm_mlx.ops.dialects.macros import HEADERS, LANE, LOOPS, TOGETHER

FOLDER = Path(__file__).parent / "kernels"
# Threads per group. Lanes are few in a recurrence, so small groups spread over more cores; not yet measured.
GROUP = 32
# Where lanes share rows: several rows a group, which read the same inputs. mlx-lm's groups have as many.
GROUP_OF_ROWS = 128
# Arrays of fewer elements lie in another address space of Metal, which makes another text.
SMALL = 8
# Tokens between two states kept for the backward pass.
CHUNK = 16
# What a token does to the state before it (`marks`): nothing, forget it, or leave it as it is.
BEGINS, PADDING = 1, 2


class TooLong(ConfigError):
    """More elements than a kernel's 32-bit indices reach."""


@dataclass(frozen=True)
class Kernel:
    """A body and the names it uses, each a list of words.

    sizes: integers known when it runs, such as T; constants: those that must be known when it is compiled;
    inputs: fp32, bf16 or uint8 arrays; outputs: fp32 arrays; chunk: tokens that a thread handles together.
    slab: on a CPU the body is called for so many tokens at a time, BEGIN <= t < END, of many lanes after each
    other, the last ones first if `backwards`, and keeps in its outputs what it carries; 0: for all of T.
    side: of how many lanes side by side the elements are side by side too; apart: pairs array:distance for
    those whose elements are not (0: shared by the lanes), in words of the body.
    """

    name: str
    sizes: str
    inputs: str
    outputs: str
    side: str
    apart: str = ""
    constants: str = ""
    chunk: int = CHUNK
    slab: int = 0
    backwards: bool = False

    def __call__(
        self,
        inputs: Sequence[mx.array],
        outputs: Sequence[tuple[int, ...]],
        *,
        lanes: int,
        **numbers: int,
    ) -> list[mx.array]:
        """Run one thread for each of `lanes` in the dialect of the default device.

        Raises: ConfigError when no dialect runs here; TooLong where 32-bit indices do not reach.
        """
        if lanes == 0:
            return [mx.zeros(shape) for shape in outputs]
        constants = {"CHUNK": self.chunk, **{name: numbers[name] for name in self.constants.split()}}
        sizes = mx.array([lanes, *(numbers[name] for name in self.sizes.split())], mx.int32)
        for count in (lanes, *(x.size for x in inputs), *map(math.prod, outputs)):
            if count >= 2**31:
                raise TooLong(
                    f"{self.name}: {count} elements in one array, at most 2^31 - 1; use impl='compiled'"
                )
        run = cpp.run if dialect() == "cpp" else _run_gpu
        try:
            return run(self, constants, [sizes, *inputs], list(outputs), lanes)
        except Exception as error:
            # A backward pass is called by MLX: by this mark the step knows whose error reaches it.
            error.kssm_kernel = self.name  # type: ignore[attr-defined]
            raise

    @property
    def numbers(self) -> str:
        """Complex numbers and vectors of space, which every body may use."""
        return _text("planar.inc") + _text("spatial.inc")

    @property
    def body(self) -> str:
        return _text(f"{self.name}.inc")

    def source(self, dialect: str) -> str:
        """What stands between the braces of the kernel function."""
        sizes = "".join(f"const int {name} = sizes[{i}];\n" for i, name in enumerate(self.sizes.split(), 1))
        return f"{LANE[dialect]}\n{sizes}{self.body}"

    def header(self, dialect: str, constants: dict[str, int]) -> str:
        """What stands before the kernel function."""
        defines = "".join(f"#define {name} {value}\n" for name, value in constants.items())
        return HEADERS[dialect] + (TOGETHER[dialect] if "SHARE" in constants else "") + defines + LOOPS

    def full_name(self, constants: dict[str, int], dtypes: Iterable[mx.Dtype]) -> str:
        """Unique for the code that results: MLX keeps compiled kernels by name."""
        types = "".join(cpp.TYPES[dtype][0] for dtype in dtypes)
        return "_".join(["kssm", self.name, *(str(n) for n in constants.values()), types])


@cache
def _text(file: str) -> str:
    return (FOLDER / file).read_text()


def dialect() -> str | None:
    """The dialect that the default device speaks; None on a CPU that MLX cannot be given operations for."""
    if _spoken:
        return _spoken[-1]
    if mx.default_device() != mx.gpu:
        return None if native.why_not() else "cpp"
    return "metal" if mx.metal.is_available() else "cuda" if mx.cuda.is_available() else None


_spoken: list[str | None] = []


@contextmanager
def use_dialect(dialect: str | None) -> Iterator[None]:
    """Run kernels in this dialect, or none, whatever the default device speaks."""
    _spoken.append(dialect)
    try:
        yield
    finally:
        _spoken.pop()


def _run_gpu(kernel: Kernel, constants, inputs, outputs, lanes: int) -> list[mx.array]:
    names = ("sizes", *kernel.inputs.split())
    compiled = _gpu_kernel(
        kernel,
        dialect(),
        tuple(constants.items()),
        kernel.full_name(constants, [x.dtype for x in inputs]),
        names,
    )
    _build(compiled, kernel, tuple((x.dtype, x.shape if x.size < SMALL else (SMALL,)) for x in inputs))
    return compiled(
        inputs=inputs,
        grid=(lanes, 1, 1),
        threadgroup=(min(GROUP_OF_ROWS if constants.get("SHARE", 1) > 1 else GROUP, lanes), 1, 1),
        output_shapes=outputs,
        output_dtypes=[mx.float32] * len(outputs),
    )


@cache
def _gpu_kernel(kernel: Kernel, dialect: str | None, constants, name: str, names: tuple[str, ...]) -> Any:
    if dialect is None:
        raise ConfigError(
            f"{kernel.name} needs a GPU, the default device is {mx.default_device()}; use impl='auto'"
        )
    make = mx.fast.metal_kernel if dialect == "metal" else mx.fast.cuda_kernel
    return make(
        name=name,
        input_names=list(names),
        output_names=kernel.outputs.split(),
        source=kernel.source(dialect),
        header=kernel.header(dialect, dict(constants)) + kernel.numbers,
    )


@cache
def _build(compiled: Callable, kernel: Kernel, arrays: tuple[tuple[mx.Dtype, tuple[int, ...]], ...]) -> None:
    """Have the text for such arrays compiled now, by a launch without a lane, and not when values are wanted.

    Raises: ConfigError where it cannot be.
    """
    outputs = len(kernel.outputs.split())
    try:
        built = compiled(
            inputs=[mx.zeros(shape, dtype) for dtype, shape in arrays],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(1,)] * outputs,
            output_dtypes=[mx.float32] * outputs,
            init_value=0.0,
        )
        mx.eval(built)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{kernel.name} cannot be built here ({why}); use impl='compiled'") from None


# ---------------------------------------------------------------------------------------------------------
# What every differentiable kernel does with its arguments.


def streams(*arrays: mx.array) -> list[mx.array]:
    """What is read once per token: bf16 where all of it is, fp32 otherwise."""
    narrow = all(x.dtype == mx.bfloat16 for x in arrays)
    return [x if narrow else x.astype(mx.float32) for x in arrays]


def scratch(lanes: int, size: int) -> tuple[int]:
    """The shape of an output in which each lane has `size` numbers of its own: i is at OWN(i, size).

    Those of neighbouring lanes are side by side: of all lanes on a GPU, of a pack on a CPU.
    """
    return (-(-lanes // cpp.TOGETHER) * cpp.TOGETHER * size,)


def marks(resets: mx.array | None, B: int, T: int) -> mx.array:
    """BEGINS where a document does, else 0. Shapes: resets [B, T] bool -> [B, T] uint8."""
    return mx.zeros((B, T), mx.uint8) if resets is None else resets.astype(mx.uint8) * BEGINS


def chunks(T: int) -> int:
    return -(-T // CHUNK)


def gradients(primals: Sequence[mx.array], found: Sequence[mx.array]) -> tuple[mx.array, ...]:
    """`found` in the dtypes of `primals`, and of their shapes: MLX accepts others in silence."""
    for i, (x, g) in enumerate(zip(primals, found, strict=True)):
        if x.shape != g.shape:
            raise AssertionError(f"gradient {i} is {g.shape}, its argument {x.shape}")
    return tuple(g.astype(x.dtype) for x, g in zip(primals, found))
