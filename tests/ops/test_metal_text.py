"""Metal's text without a Mac: it is MLX's own, and every mistake that is planted in it is told by name.

That all kernels pass is what the parameter "metal-text" of the other tests of this folder says.
"""

from __future__ import annotations

import mlx.core as mx
import pytest

from kssm_mlx.ops import dispatch, proof
from tests.support import metal_check, metal_run, metal_text
from tests.support.metal_signature import ATTRIBUTES, signature
from tests.support.metal_text import MetalTextError

pytestmark = pytest.mark.linux
OPS = [op for op in dispatch.OPS if op not in dispatch.FOR_CPUS]


# --- the text is MLX's ----------------------------------------------------------------------------------


def texts_of_mlx(tmp_path, made: dict, launch: dict) -> str:
    """What an exported function holds: MLX writes a kernel's text there even where it cannot run it."""
    path = tmp_path / "function.mlxfn"
    kernel, inputs = mx.fast.metal_kernel(**made), launch.pop("inputs")
    mx.export_function(str(path), lambda *x: kernel(inputs=list(x), **launch), *inputs)
    return path.read_bytes().decode("latin1")


@pytest.fixture
def calls(monkeypatch):
    """Every call of a kernel: how it was made, how it was launched."""
    found, stand_in = [], metal_text.metal_kernel

    def recording(**made):
        kernel = stand_in(**made)

        def call(**launch):
            found.append((made, dict(launch)))
            return kernel(**launch)

        return call

    monkeypatch.setattr(metal_text, "metal_kernel", recording)
    return found


@pytest.mark.parametrize("op", OPS)
def test_the_text_is_the_one_that_mlx_writes(op, calls, tmp_path, uncompiled):
    """Forward and backward, in both dtypes, with arrays in either address space."""
    case = dispatch.case(op)
    with metal_text.standing_in():
        for size, dtype in (((3, 37, 6), mx.float32), ((1, 2, 2), mx.bfloat16)):
            proof.outcome(case, "kernel", case.inputs(*size, dtype), proof.documents(*size[:2]))
    assert len(calls) >= 4
    for made, launch in calls:
        names = ("source", "input_names"), ("inputs",), ("output_names",), ("output_dtypes",)
        said = {**made, **launch}
        mine = signature(made["name"], *(said[name] for group in names for name in group))
        assert mine.text(made["header"], made["source"]) in texts_of_mlx(tmp_path, made, dict(launch))


def test_all_that_mlx_may_pass(tmp_path):
    """Shapes, strides and ranks where they are named, every attribute, a number by reference."""
    words = ["x_shape[0]", "x_strides[0]", "x_ndim", "small_shape[0]"]
    source = f"y[0] = {' + '.join(words)} + number; // {' '.join(ATTRIBUTES)}"
    inputs = [mx.zeros((2, 5)), mx.zeros((3,), mx.bfloat16), mx.array(1, mx.int32), mx.zeros((8,), mx.uint8)]
    names, outputs = ["x", "small", "number", "eight"], ["y", "z"]
    launch = {
        "inputs": inputs,
        "grid": (1, 1, 1),
        "threadgroup": (1, 1, 1),
        "output_shapes": [(1,), (1,)],
        "output_dtypes": [mx.float32, mx.bfloat16],
    }
    made = {"name": "all", "input_names": names, "output_names": outputs, "source": source, "header": "//\n"}
    mine = signature("all", source, names, inputs, outputs, launch["output_dtypes"])
    assert mine.text("//\n", source) in texts_of_mlx(tmp_path, made, launch)
    assert len(mine.attributes) == len(ATTRIBUTES)


# --- planted mistakes -----------------------------------------------------------------------------------

SOURCE = "const int lane = int(thread_position_in_grid.x);\n"


def launch(source: str, header: str = "", lanes: int = 40, group: int = 32, inputs=("x",), outputs=("y",)):
    """One launch of a kernel that reads x [40] (fp32), b [40] (bf16) and few [4], and writes y [40]."""
    values = {"x": mx.ones(40), "b": mx.ones(40, mx.bfloat16), "few": mx.ones(4)}
    kernel = metal_text.metal_kernel("planted", list(inputs), list(outputs), f"{SOURCE}{source}", header)
    with metal_text.standing_in():
        found = kernel(
            inputs=[values.get(name, values["x"]) for name in inputs],
            grid=(lanes, 1, 1),
            threadgroup=(group, 1, 1),
            output_shapes=[(40,)] * len(outputs),
            output_dtypes=[mx.float32] * len(outputs),
        )
        mx.eval(found)
    return found


def test_a_sound_kernel_is_told_nothing():
    (y,) = launch("y[lane] = x[lane] + float(b[lane]) + few[lane % 4];", inputs=("x", "b", "few"))
    assert (y == 3).all()


IN_A_TEXT = {
    "a pointer across address spaces": (
        "const device float* p = few; y[lane] = p[0];",
        r"cannot initialize a variable of type 'device float const \*' with an lvalue of type 'constant",
    ),
    "a pointer to nowhere in particular": (
        "const float* p = x; y[lane] = p[0];",
        r"cannot initialize a variable of type 'const float \*' with an lvalue of type 'device",
    ),
    "a store to an input": ("few[0] = 1.0f; y[lane] = few[0];", "read-only variable is not assignable"),
    "a double": (
        "y[lane] = 1.5 * x[lane];",
        "implicit conversion increases floating-point precision: 'device float const' to 'double'",
    ),
    "a double by name": ("const double d = 1; y[lane] = float(d);", "attempt to use a poisoned identifier"),
    "an exception": ("if (lane > 40) throw 1; y[lane] = 0;", "attempt to use a poisoned identifier"),
    "a jump": ("goto end; end: y[lane] = 0;", "attempt to use a poisoned identifier"),
    "a bf16 store without a cast": (
        "bfloat16_t z = x[lane]; y[lane] = float(z);",
        "implicit conversion loses floating-point precision: .*bfloat16_t",
    ),
    "a bf16 read without a cast": (
        "y[lane] = b[lane];",
        "implicit conversion increases floating-point precision: .*bfloat16_t",
    ),
    "an unknown function": ("y[lane] = expm1(x[lane]);", "use of undeclared identifier 'expm1'"),
    "an attribute of another type": (
        "y[thread_position_in_grid] = x[lane];",
        r"no viable overloaded operator\[\] for type 'device float \*'",
    ),
    "an attribute that nobody passes": (
        "y[lane] = float(thread_id);",
        "use of undeclared identifier 'thread_id'",
    ),
    "a variable that is not set": ("float z; y[lane] = z;", "variable 'z' is uninitialized"),
    "a variable that hides another": (
        "for (int i = 0; i < 1; ++i) { const int lane = 0; y[lane] = x[lane]; } y[lane] = 0;",
        "declaration shadows a local variable",
    ),
    "a letter beyond ASCII": ("y[lane] = x[lane]; // \N{GREEK SMALL LETTER THETA}", "not ASCII: 'θ'"),
}


@pytest.mark.parametrize("mistake", IN_A_TEXT)
def test_a_mistake_in_a_text_is_told(mistake):
    source, told = IN_A_TEXT[mistake]
    with pytest.raises(MetalTextError, match=f"custom_kernel_planted_.*: {told}"):
        launch(source, inputs=("x", "b", "few"))


IN_A_RUN = {
    "a read behind an array": ("y[lane] = x[lane + 1];", r"read outside: x\[40\] of 40 elements"),
    "a read before an array": ("y[lane] = x[lane - 1];", r"read outside: x\[-1\] of 40 elements"),
    "a write behind an array": ("y[lane + 1] = x[lane];", r"written or read outside: y\[40\] of 40 elements"),
    "an element that is not written": (
        "if (lane != 7) y[lane] = x[lane];",
        "not written: 1 of 40 elements of y, the first is 7",
    ),
    "an output that is read first": ("y[lane] += x[lane];", r"read before it is written: y\[0\]"),
}


@pytest.mark.parametrize("mistake", IN_A_RUN)
def test_a_mistake_in_a_run_is_told(mistake):
    source, told = IN_A_RUN[mistake]
    with pytest.raises(MetalTextError, match=told):
        launch(source)


def test_too_few_threads_leave_elements_unwritten():
    with pytest.raises(MetalTextError, match="not written: 8 of 40 elements of y, the first is 32"):
        launch("y[lane] = x[lane];", lanes=32)


def test_too_many_buffers_are_told():
    names = [f"x{i}" for i in range(31)]
    with pytest.raises(MetalTextError, match="32 buffers, Metal binds at most 31"):
        launch(f"y[lane] = {' + '.join(f'{name}[lane]' for name in names)};", inputs=names)


def test_too_large_a_group_is_told():
    with pytest.raises(MetalTextError, match="2048 threads in a group, Metal runs 1 to 1024"):
        launch("if (lane < 40) y[lane] = x[lane];", lanes=2048, group=2048)


def test_a_group_is_never_larger_than_the_grid():
    launch("y[lane] = x[lane];", group=2048)


# --- threads that meet ----------------------------------------------------------------------------------


def test_a_simdgroup_adds_up():
    (y,) = launch("y[lane] = metal::simd_sum(float(lane));", inputs=())
    assert y.tolist() == [sum(range(32))] * 32 + [sum(range(32, 40))] * 8


def test_a_simdgroup_exchanges():
    (y,) = launch("y[lane] = metal::simd_shuffle_xor(metal::simd_shuffle_xor(float(lane), 1), 4);", inputs=())
    assert y.tolist() == [lane ^ 5 for lane in range(40)]


SHARED = """threadgroup float shared[64];
shared[lane % 64] = x[lane];
metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
y[lane] = shared[(lane + 1) % 40];"""


def test_a_group_shares_memory_behind_a_barrier():
    (y,) = launch(SHARED, group=64)
    assert (y == 1).all()


@pytest.mark.parametrize(
    "source, told",
    [
        ("if (lane != 3) y[lane] = metal::simd_sum(1.0f);", "threads of a simdgroup part: .* at the end"),
        ("y[lane] = 0; if (lane < 32) metal::threadgroup_barrier(metal::mem_flags::mem_none);", "a barrier"),
    ],
)
def test_threads_that_do_not_meet_are_told(source, told):
    with pytest.raises(MetalTextError, match=told):
        launch(source, group=64, inputs=())


# --- the tools themselves -------------------------------------------------------------------------------


def test_a_fault_is_told_once():
    with pytest.raises(MetalTextError):
        launch("y[lane + 1] = x[lane];")
    assert metal_run.take_faults() == []


def test_what_is_not_checked_is_only_scratch():
    assert metal_run.scratch("phase[OWN(n, N)] = 1; y[lane] = phase[OWN(0, N)];") == {"phase"}


def test_what_clang_does_not_know_is_not_ignored():
    """The prelude itself is sound, and the switches that keep clang quiet are spelt right."""
    assert metal_check.diagnostics("static inline int one() { return 1; }\n") == []
