"""The Kuramoto bank as kernels: one lane per group, phases kept every CHUNK tokens, vectors in scratch."""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.ops import custom_function
from kssm_mlx.ops import kuramoto_bank as compiled
from kssm_mlx.ops.gpu import CHUNK, Kernel, chunks, gradients, scratch, streams
from kssm_mlx.ops.proof import Case, normal
from kssm_mlx.oscillators.planar import Planar

FORWARD = Kernel(
    "kuramoto_bank_forward",
    "T N G",
    "theta0 omega K h_re h_im tau",
    "theta1 Z_re Z_im saved phase cosine sine",
    side="G",
    constants="S H",
)
BACKWARD = Kernel(
    "kuramoto_bank_backward",
    "T N G",
    "omega K h_re h_im tau saved c_theta1 c_re c_im",
    "g_theta0 g_omega g_K g_h_re g_h_im g_tau phase pull pushed trail cosine sine",
    side="G",
    constants="S H",
)


def kuramoto_bank(theta, omega, K, h, tau, *, steps=1, harmonics=1) -> tuple[Planar, mx.array]:
    """Shapes as in `ops.kuramoto_bank`."""
    K, h_re, h_im, tau = streams(K, h.re, h.im, tau)
    theta, omega = theta.astype(mx.float32), omega.astype(mx.float32)
    parts = _bank(steps, harmonics)(theta.swapaxes(1, 2), omega.T, K, h_re, h_im, tau)
    return Planar(parts[1], parts[2]).map(lambda x: x.swapaxes(2, 3)), parts[0].swapaxes(1, 2)


def _bank(S: int, H: int):
    """The differentiable bank of S steps a token and H harmonics."""

    @custom_function
    def bank(*primals):
        (B, N, G), T = primals[0].shape, primals[2].shape[1]
        shapes = [(B, N, G), (B, T, H, G), (B, T, H, G), (B, chunks(T), N, G), *[scratch(B * G, N)] * 3]
        return tuple(FORWARD(primals, shapes, lanes=B * G, T=T, N=N, G=G, S=S, H=H)[:4])

    @bank.vjp
    def _(primals, cotangents, outputs):
        (B, N, G), T = primals[0].shape, primals[2].shape[1]
        known = (*primals[1:], outputs[3], *cotangents[:3])
        scratches = [scratch(B * G, n) for n in (N, N, N, CHUNK * N, (S + 1) * N, (S + 1) * N)]
        shapes = [(B, N, G)] * 2 + [(B, T, G)] * 4 + scratches
        theta, omega, *tokens = BACKWARD(known, shapes, lanes=B * G, T=T, N=N, G=G, S=S, H=H)[:6]
        return gradients(primals, (theta, omega.sum(0), *tokens))

    return bank


def _arguments(B, T, N, G=3):
    drive = [mx.abs(normal(0, B, T, G)), normal(1, B, T, G), normal(2, B, T, G)]
    tau = 0.1 + 0.1 * mx.sigmoid(normal(3, B, T, G))
    return [*drive, tau, 3 * normal(4, B, G, N), normal(5, G, N)]


def _call(op, x, masks):
    Z, theta = op(x[4], x[5], x[0], Planar(x[1], x[2]), x[3])
    return [Z.re, Z.im, mx.cos(theta), mx.sin(theta)]


CASE = Case(
    compiled.kuramoto_bank,
    _arguments,
    4,
    _call,
    compiled.kuramoto_bank_reference,
    masked=False,
    variants=({"steps": 1, "harmonics": 1}, {"steps": 2, "harmonics": 3}),
    options={"steps": 2, "harmonics": 3},
)
