"""One case per kernel: arguments of any size, and the op called with them, so that forms can be compared.

The tests, `kssm doctor` and the first use of a kernel all run these: values and every gradient against
another form of the same op, on lengths that no chunk divides, with documents and padding inside rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import mlx.core as mx

from kssm_mlx.ops import (
    conv,
    elementary,
    kuramoto_bank,
    mobius_scan,
    norms,
    selective_scan,
    ssd,
    token_mix,
    wkv4,
    wkv7,
)
from kssm_mlx.ops.dispatch import Verdict
from kssm_mlx.oscillators.planar import Planar

# fp32 forms differ by the order of sums and the last digit of a sine, which coupled phases amplify a hundred
# times; gradients of bf16 arguments are bf16, of 8 bits. One wrong term shows as 1e-2 or more.
TOLERANCES = {mx.float32: 5e-4, mx.bfloat16: 1e-2}

# Rows, tokens and widths of the proof: more lanes than a group has threads, a length that no chunk divides;
# in C++ one lane at a time, then packs of them on several threads.
PROOFS = ((12, 37, 6), (12, 37, 32))

Arrays = list[mx.array]


@dataclass(frozen=True)
class Case:
    """arguments(B, T, width) -> the differentiable arrays, those read per token first; moving of them are;
    call(op, arrays, masks) -> outputs that all forms share; forms: "compiled" and "kernel" take `impl`.
    """

    arguments: Callable[[int, int, int], Arrays]
    moving: int
    call: Callable[[Callable, Arrays, dict], Arrays]
    op: Callable
    reference: Callable | None = None
    masked: bool = True

    def form(self, name: str) -> Callable:
        if name == "reference":
            return self.reference or partial(self.op, impl="compiled")
        return partial(self.op, impl=name)


def outcome(case: Case, form: str, arrays: Arrays, masks: dict, seed: int = 0) -> Arrays:
    """Outputs, then the gradients in all arrays of a random linear function of the outputs."""
    run = partial(_call, case, form, masks)
    shapes = [x.shape for x in run(*arrays)]
    pulls = [_normal(seed + 90 + i, *shape) for i, shape in enumerate(shapes)]
    outputs, slopes = mx.vjp(run, arrays, pulls)
    return [*outputs, *slopes]


def _call(case: Case, form: str, masks: dict, *arrays: mx.array) -> Arrays:
    return case.call(case.form(form), list(arrays), masks if case.masked else {})


def compare(
    op: str, B: int, T: int, width: int, *, dtype=mx.float32, masked=True, against="compiled"
) -> float:
    """The largest difference of any output or gradient, relative to that array's largest; NaN if any is."""
    case = CASES[op]
    arrays = case.arguments(B, T, width)
    arrays = [x.astype(dtype) if i < case.moving else x for i, x in enumerate(arrays)]
    masks = documents(B, T) if masked else {}
    ours, theirs = (outcome(case, form, arrays, masks) for form in ("kernel", against))
    return _worst(_distance(x, y) for x, y in zip(ours, theirs, strict=True))


def _worst(errors: Iterable[float]) -> float:
    """The largest; NaN if any is."""
    return max(errors, key=lambda e: (e != e, e))


def _distance(x: mx.array, y: mx.array) -> float:
    if x.shape != y.shape:
        return float("inf")
    x, y = x.astype(mx.float32), y.astype(mx.float32)
    return (mx.abs(x - y).max() / mx.maximum(mx.abs(y).max(), 1e-3)).item()


def prove(op: str) -> Verdict:
    """The verdict of small cases in both dtypes; a kernel that does not even compile gets one too."""
    try:
        errors = {dtype: _worst(compare(op, *size, dtype=dtype) for size in PROOFS) for dtype in TOLERANCES}
    except Exception as error:  # whatever a compiler or a driver raises, the compiled form is there
        return _broken(op, error)
    ok = all(error <= TOLERANCES[dtype] for dtype, error in errors.items())
    return Verdict(op, ok, errors[mx.float32], "" if ok else _disagreement(errors))


def build(op: str) -> Verdict:
    """The verdict of a kernel that only has to be there: built, forward and backward, and run once."""
    try:
        case = CASES[op]
        mx.eval(outcome(case, "kernel", case.arguments(1, 2, 2), {}))
    except Exception as error:  # as in `prove`
        return _broken(op, error)
    return Verdict(op, True, 0.0)


def _broken(op: str, error: Exception) -> Verdict:
    why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return Verdict(op, False, float("inf"), why)


def _disagreement(errors: dict) -> str:
    return "it differs from the compiled form by " + " and ".join(
        f"{error:.1e} in {str(dtype).split('.')[-1]}" for dtype, error in errors.items()
    )


def documents(B: int, T: int) -> dict[str, mx.array]:
    """Some documents begin inside rows, also two in a row; the last row is padded."""
    resets = mx.random.uniform(shape=(B, T), key=mx.random.key(70)) < 0.1
    return {"resets": resets, "lengths": mx.array([T] * (B - 1) + [T // 2 + 1])}


def _normal(seed: int, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


# ---------------------------------------------------------------------------------------------------------
# The cases.


def _mobius_arguments(B, T, G):
    a = mobius_scan.flow(0.05 + mx.abs(_normal(0, B, T, G)) / 9, _normal(1, B, T, G))
    k = mobius_scan.kick(Planar(_normal(2, B, T, G), _normal(3, B, T, G)), 0.7)
    start = [0.5 * mx.tanh(_normal(i, B, G)) for i in (4, 5)]
    return [a.re, a.im, k.re, k.im, *start, mx.array(0.7)]


def _mobius_call(op, x, masks):
    z = op(Planar(x[0], x[1]), Planar(x[2], x[3]), Planar(x[4], x[5]), x[6])
    return [z.re, z.im]


def _selective_arguments(B, T, D, N=5):
    tokens = [
        _normal(0, B, T, D),
        0.3 * mx.abs(_normal(1, B, T, D)),
        _normal(2, B, T, N),
        _normal(3, B, T, N),
    ]
    return [*tokens, -mx.abs(_normal(4, D, N)), _normal(5, B, D, N)]


def _selective_call(op, x, masks):
    y, h = op(x[0], x[1], x[4], x[2], x[3], x[5], **masks)
    return [_valid(y, masks), h]


def _wkv4_arguments(B, T, C):
    state = [_normal(4, B, C), mx.abs(_normal(5, B, C)) + 0.1, _normal(6, B, C)]
    return [2 * _normal(0, B, T, C), _normal(1, B, T, C), -mx.abs(_normal(2, C)), _normal(3, C), *state]


def _wkv4_call(op, x, masks):
    y, s = op(x[2], x[3], x[0], x[1], wkv4.WKV4State(*x[4:]), **masks)
    return [_valid(y, masks), s.num * mx.exp(s.max), s.den * mx.exp(s.max)]


def _wkv7_arguments(B, T, width, H=2):
    K, V = 4, width
    r, k, b = (_normal(i, B, T, H, K) for i in range(3))
    a, v = -b / 9, _normal(3, B, T, H, V)
    return [r, k, a, b / 9, v, -0.6 * mx.sigmoid(_normal(4, B, T, H, K)), _normal(5, B, H, V, K)]


def _wkv7_call(op, x, masks):
    r, k, a, b, v, log_w, S = x
    y, S = op(r, log_w, k, v, a, b, S, **masks)
    return [_valid(y, masks), S]


def _ssd_arguments(B, T, P, H=4, G=2, N=5):
    tokens = [_normal(0, B, T, H, P), 0.3 * mx.abs(_normal(1, B, T, H))]
    shared = [_normal(2, B, T, G, N), _normal(3, B, T, G, N)]
    return [*tokens, *shared, -mx.abs(_normal(4, H)), _normal(5, B, H, P, N)]


def _conv_arguments(B, T, D, W=4):
    return [_normal(0, B, T, D), _normal(1, B, W - 1, D), _normal(2, D, W), _normal(3, D)]


def _conv_call(op, x, masks):
    y, past = op(x[0], x[2], x[3], x[1], **masks)
    return [_valid(y, masks), past]


def _mix_arguments(B, T, D, C=3):
    return [_normal(0, B, T, D), _normal(1, B, D), mx.random.uniform(shape=(C, D), key=mx.random.key(2))]


def _mix_call(op, x, masks):
    mixed, last = op(x[0], x[2], x[1], **masks)
    return [*(_valid(y, masks) for y in mixed), last]


def _kuramoto_arguments(B, T, N, G=3):
    drive = [mx.abs(_normal(0, B, T, G)), _normal(1, B, T, G), _normal(2, B, T, G)]
    tau = 0.1 + 0.1 * mx.sigmoid(_normal(3, B, T, G))
    return [*drive, tau, 3 * _normal(4, B, G, N), _normal(5, G, N)]


def _kuramoto_call(op, x, masks):
    Z, theta = op(x[4], x[5], x[0], Planar(x[1], x[2]), x[3], steps=2, harmonics=3)
    return [Z.re, Z.im, mx.cos(theta), mx.sin(theta)]


def _elementary(x: mx.array, *, impl: str = "auto") -> Arrays:
    e = elementary
    every = (e.exp, e.sigmoid, e.silu, e.softplus, e.relu2, e.tanh, e.sin, e.cos)
    both = [e.tanh_by_x(x * x, impl=impl), e.biased_sigmoid(x, 3 * x[0, 0], impl=impl)]
    return [*(f(x, impl=impl) for f in every), *both]


def _norms(x: mx.array, weight: mx.array, bias: mx.array, *, impl: str = "auto") -> Arrays:
    centred = norms.layer_norm(x, weight, bias, 1e-5, impl=impl)
    return [centred, norms.rms_norm(x + 1, weight[0], 1e-5, impl=impl)]


def _valid(y: mx.array, masks: dict) -> mx.array:
    """Outputs in the padding mean nothing and are not compared."""
    if "lengths" not in masks:
        return y
    inside = mx.arange(y.shape[1]) < masks["lengths"][:, None]
    return mx.where(inside.reshape(*inside.shape, *[1] * (y.ndim - 2)), y, 0).astype(mx.float32)


CASES = {
    "mobius_scan": Case(
        _mobius_arguments,
        4,
        _mobius_call,
        mobius_scan.mobius_scan,
        mobius_scan.mobius_scan_reference,
        masked=False,
    ),
    "selective_scan": Case(
        _selective_arguments,
        4,
        _selective_call,
        selective_scan.selective_scan,
        selective_scan.selective_scan_reference,
    ),
    "wkv4": Case(_wkv4_arguments, 2, _wkv4_call, wkv4.wkv4, wkv4.wkv4_reference),
    "wkv7": Case(_wkv7_arguments, 5, _wkv7_call, wkv7.wkv7, wkv7.wkv7_reference),
    "ssd": Case(_ssd_arguments, 4, _selective_call, ssd.ssd, ssd.ssd_reference),
    "conv": Case(_conv_arguments, 2, _conv_call, conv.causal_conv),
    "kuramoto_bank": Case(
        _kuramoto_arguments,
        4,
        _kuramoto_call,
        kuramoto_bank.kuramoto_bank,
        kuramoto_bank.kuramoto_bank_reference,
        masked=False,
    ),
    "token_mix": Case(_mix_arguments, 2, _mix_call, token_mix.token_mix),
    "elementary": Case(
        lambda B, T, D: [_normal(0, B, T, D)], 1, lambda op, x, masks: op(x[0]), _elementary, masked=False
    ),
    "norms": Case(
        lambda B, T, D: [_normal(0, B, T, 3, D), 1 + 0.1 * _normal(1, 3, D), _normal(2, 3, D)],
        1,
        lambda op, x, masks: op(*x),
        _norms,
        masked=False,
    ),
}
