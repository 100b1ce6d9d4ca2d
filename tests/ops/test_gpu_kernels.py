"""Every kernel, forward and backward, against the recurrence on paper: shapes, dtypes, masks, extremes."""

from __future__ import annotations

import dataclasses
import math

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.ops import dispatch, gpu, proof
from kssm_mlx.ops.kernels import in_time
from kssm_mlx.ops.kernels.conv import FORWARD
from kssm_mlx.ops.kernels.wkv7 import SHARES
from kssm_mlx.ops.mobius_scan import flow, kick
from kssm_mlx.oscillators.planar import Planar

OPS = sorted(dispatch.OPS)
MASKED = [op for op in OPS if dispatch.case(op).masked]
# Values and gradients of the reference carry fp32 rounding too, most of all where phases feed back.
CLOSE = 4e-5


def error(op: str, *size: int, **options) -> float:
    """Of the kernel against the recurrence on paper, as rows, tokens and width; no masks unless told."""
    return proof.compare(dispatch.case(op), *size, **{"masked": False, "against": "reference", **options})


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("T, width", [(1, 6), (16, 6), (37, 6), (1, 16), (37, 32)])
@pytest.mark.parametrize("op", OPS)
def test_is_the_recurrence_on_paper(op, T, width, dtype, dialect):
    """A width of 16 fills a register of the C++ dialect's packs, one of 6 goes lane by lane."""
    assert error(op, 3, T, width, dtype=dtype) <= proof.tolerance(dtype, CLOSE)


@pytest.mark.parametrize("width", [6, 16])
@pytest.mark.parametrize("op", MASKED)
def test_documents_and_padding(op, width, dialect):
    assert error(op, 3, 37, width, masked=True) <= CLOSE


@pytest.mark.parametrize("op", OPS)
def test_one_lane_of_everything(op, dialect):
    # One phase does not feel its own mean field, and one number is its own mean: gradients of 0.
    width = 2 if op in ("kuramoto_bank", "norms") else 1
    assert error(op, 1, 17, width) <= CLOSE


@pytest.mark.parametrize("op", OPS)
def test_more_lanes_than_a_group(op, dialect):
    assert error(op, 12, 3, 11) <= CLOSE


@pytest.mark.parametrize("op", sorted(set(OPS) - {"kuramoto_bank"}))
def test_long_sequences(op, dialect):
    """Not phases, which amplify the last digit."""
    assert proof.compare(dispatch.case(op), 2, 1025, 3) <= CLOSE


@pytest.mark.parametrize("op", OPS)
def test_gradients_are_the_same_bits_every_time(op, dialect):
    case = dispatch.case(op)
    arrays, masks = case.arguments(3, 37, 6), proof.documents(3, 37)
    first, second = (proof.outcome(case, "kernel", arrays, masks) for _ in range(2))
    assert all(mx.array_equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_gradients_have_the_dtypes_of_their_arguments(op, dialect):
    case = dispatch.case(op)
    arrays = case.arguments(2, 5, 3)
    arrays = [x.astype(mx.bfloat16) if i < case.moving else x for i, x in enumerate(arrays)]
    gradients = proof.outcome(case, "kernel", arrays, {})[-len(arrays) :]
    assert [(g.dtype, g.shape) for g in gradients] == [(x.dtype, x.shape) for x in arrays]


# --- extremes -------------------------------------------------------------------------------------------


def close(op, arrays, masks=None, tolerance=2e-5):
    """Kernel and reference agree on `arrays`, relative to the largest value, and nothing is NaN."""
    forms = [proof.outcome(dispatch.case(op), form, arrays, masks or {}) for form in ("kernel", "reference")]
    for ours, theirs in zip(*forms, strict=True):
        ours, theirs = np.array(ours), np.array(theirs)
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=tolerance * max(np.abs(theirs).max(), 0.1))


@pytest.mark.parametrize("size", [1e-6, 30.0, 1e4])
def test_selective_scan_decays_near_one_and_zero(size, dialect):
    x, dt, B, C, A, h = dispatch.case("selective_scan").arguments(2, 35, 4)
    close("selective_scan", [x, dt * size, B, C, A, h * 1e3])


@pytest.mark.parametrize("size", [0.0, 30.0, 1e4])
def test_wkv4_keys_that_would_overflow(size, dialect, monkeypatch):
    """Of the outputs only: what the state stands for, num e^max, does overflow."""
    case = dispatch.case("wkv4")
    outputs = dataclasses.replace(case, call=lambda *given: case.call(*given)[:1])
    monkeypatch.setattr(dispatch.module("wkv4"), "CASE", outputs)
    k, *rest = case.arguments(2, 35, 4)
    close("wkv4", [size * k, *rest], proof.documents(2, 35), tolerance=2e-4)


@pytest.mark.parametrize("rate", [-1e-7, -0.6, -20.0])
def test_wkv7_decays_near_one_and_zero(rate, dialect):
    r, k, a, b, v, log_w, S = dispatch.case("wkv7").arguments(2, 35, 3)
    close("wkv7", [r, k, a, b, v, mx.full(log_w.shape, rate), S])


@pytest.mark.parametrize("gamma", [1e-8, 1e10])
@pytest.mark.parametrize("field", [0.0, 7.0, 1e10])
def test_mobius_scan_is_finite_for_any_field_and_decay(field, gamma, dialect):
    shape = (2, 300, 4)
    h = Planar(*(field * mx.random.normal(shape, key=mx.random.key(i)) for i in range(2)))
    a, k = flow(mx.full(shape, gamma), mx.full(shape, 0.3)), kick(h)
    arrays = [a.re, a.im, k.re, k.im, *(mx.zeros((2, 4)),) * 2, mx.array(1.0)]
    *found, kappa = proof.outcome(dispatch.case("mobius_scan"), "kernel", arrays, {})
    assert all(mx.isfinite(x).all() for x in found)
    assert math.isfinite(kappa.item())
    assert (found[0] ** 2 + found[1] ** 2).max() <= 1 + 1e-4


# --- guards ---------------------------------------------------------------------------------------------


def test_wrong_gradient_shapes_are_refused():
    x = mx.zeros((2, 3))
    with pytest.raises(AssertionError, match=r"gradient 1 is \(3, 2\), its argument \(2, 3\)"):
        gpu.gradients((x, x), (x, x.T))


def test_arrays_too_long_for_the_index_are_refused(cpp):
    with pytest.raises(ConfigError, match=r"2147483648 elements .* use impl='compiled'"):
        FORWARD([], [(2**16, 2**15)], lanes=1, T=1, D=1, W=2)


@pytest.mark.parametrize(
    "op, right, wrong",
    [
        ("mobius_scan", "g_curvature -=", "g_curvature +="),
        ("expanded_scan", "0.5f * size * along", "size * along"),
        ("expanded_ball", "0.5f * dot(k[t], k[t]) * along", "dot(k[t], k[t]) * along"),
        ("expanded_ball", "          g = spatial(0, 0, 0);\n", ""),
        ("ball_scan", "+ curvature * gk * w", "+ curvature * gw * w"),
        ("ball_wells", "- mean_g);", ");"),
        ("rotor", "2 * slope * along", "slope * along"),
        ("selective_scan", "g_exponent * rate", "g_exponent"),
        ("wkv4", "g_den -=", "g_den +="),
        ("wkv7", "sum_a[t] += q[m]", "sum_a[t] += u[m]"),
        ("conv", "ahead > 0 && marks", "marks"),
        ("kuramoto_bank", "/ N * (g_f.im", "* (g_f.im"),
    ],
)
def test_one_wrong_term_is_seen(op, right, wrong, cpp, monkeypatch):
    body = gpu.Kernel.body.fget
    assert sum(right in text.read_text() for text in gpu.FOLDER.glob(f"{op}*.inc")) == 1
    monkeypatch.setattr(gpu.Kernel, "body", property(lambda kernel: body(kernel).replace(right, wrong)))
    assert proof.compare(dispatch.case(op), 3, 37, 6) > 20 * proof.TOLERANCE


# --- rows that several lanes share ----------------------------------------------------------------------


@pytest.mark.parametrize("T, V, K", [(1, 6, 64), (37, 5, 64), (37, 3, 4)])
@pytest.mark.parametrize("share", SHARES)
def test_lanes_that_share_a_row(share, T, V, K, dialect):
    """One column each or several, simdgroups that are full and that are not."""
    if dialect == "cpp" and share > 1:
        pytest.skip("the CPU's kernel has one lane for a row, so lanes never share one there")
    if K % share:
        pytest.skip(f"{share} lanes cannot share a row of {K} columns evenly, and dispatch never asks for it")
    with dispatch.use_variant("wkv7", {"share": share}):
        assert error("wkv7", 3, T, V, K=K, masked=True) <= CLOSE


# --- time in parts --------------------------------------------------------------------------------------


@pytest.fixture
def three_parts(monkeypatch):
    """Time cut into three, wherever a kernel can."""
    monkeypatch.setattr(in_time, "parts", lambda T, lanes: 3)


@pytest.mark.parametrize("T", [50, 96, 130])
@pytest.mark.parametrize("op", ["mobius_scan", "ball_scan", "selective_scan", "ssd", "wkv4"])
def test_time_in_parts(op, T, dialect, three_parts):
    """Values, states and gradients are those of one walk, with documents and padding in any part."""
    assert error(op, 3, T, 6, masked=True) <= CLOSE


@pytest.mark.parametrize("op", ["mobius_scan", "ball_scan"])
def test_time_in_parts_rounds_its_inputs_once(op, dialect, three_parts):
    """bf16: what is padded is not rounded again, as it would be by adding 1 to it."""
    assert error(op, 3, 96, 6, dtype=mx.bfloat16) <= proof.tolerance(mx.bfloat16)


def test_parts_are_for_gpus_with_few_lanes(monkeypatch):
    monkeypatch.setattr(gpu, "dialect", lambda: "cpp")
    assert in_time.parts(65536, 64) == 1
    monkeypatch.setattr(gpu, "dialect", lambda: "metal")
    assert in_time.parts(65536, 64) == 256
    assert in_time.parts(65536, 8192) == 2
    assert in_time.parts(65536, 32768) == 1
    assert in_time.parts(in_time.LEAST, 64) == 1


@pytest.mark.parametrize("T", [1, 16, 47, 48, 49])
def test_cut_and_join(T):
    x = mx.random.normal((2, T, 3))
    assert mx.array_equal(in_time.join(in_time.cut(x, 3), 3, T), x)
    y = mx.random.normal((6, 4))
    assert mx.array_equal(in_time.batch(in_time.rows(y, 3)), y)
