"""Every case, in the order of the report: models beside their peers, the recurrences alone, oscillators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx

from kssm_mlx.bench import ours, peers
from kssm_mlx.bench.measure import Case, Contender
from kssm_mlx.bench.oscillators import oscillator_cases
from kssm_mlx.bench.ours import Shape
from kssm_mlx.bench.recurrences import recurrence_cases

FAMILIES = ("mamba", "mamba2", "rwkv", "rwkv7")


@dataclass(frozen=True)
class Sizes:
    """lengths: T of the models; training_lengths: T of steps whose peers differentiate loops, at cost T²;
    mamba_training: more of those for Mamba, where mlx-lm takes a minute; own_lengths: T of one row, for our
    models alone; op_lengths: T of the recurrences alone; oscillators: N; decoded: tokens one by one.
    """

    shape: Shape
    wide: int
    lengths: tuple[int, ...] = (128, 512, 2048)
    training_lengths: tuple[int, ...] = (128, 512)
    mamba_training: tuple[int, ...] = (2048,)
    own_lengths: tuple[int, ...] = ()
    op_lengths: tuple[int, ...] = (512, 4096, 65536)
    oscillators: tuple[int, ...] = (100, 10_000, 1_000_000)
    decoded: int = 64


def sizes(full: bool) -> Sizes:
    """What is worth measuring on the default device, in a quarter of an hour unless `full`."""
    gpu = mx.default_device() == mx.gpu
    shape = Shape(width=768, layers=12, batch=8) if gpu else Shape()
    if not full:
        return Sizes(shape, wide=1024 if gpu else 512)
    return Sizes(
        shape,
        wide=1024 if gpu else 512,
        lengths=(128, 512, 2048, 8192),
        training_lengths=(128, 512, 2048),
        mamba_training=(),
        own_lengths=(65536,),
        oscillators=(100, 1000, 10_000, 100_000, 1_000_000),
    )


def cases(size: Sizes) -> Iterator[Case]:
    """Cheap to list: a case builds its contenders when it is run."""
    for family in FAMILIES:
        for T in size.lengths:
            yield _prefill(family, size.shape, T)
        for T in size.training_lengths + (size.mamba_training if family == "mamba" else ()):
            yield _training(family, size.shape, T)
        for T in size.own_lengths:
            # Four rows of it would not fit in the memory of a small machine.
            row = replace(size.shape, batch=1)
            yield from (_prefill(family, row, T, beside=False), _training(family, row, T, beside=False))
        for batch in (1, 8):
            yield _decoding(family, size.shape, batch, size.decoded)
        yield _decoding(family, size.shape, 1, size.decoded, bits=4)
    yield _author(size.shape)
    yield _wide_prefill(size)
    yield _equal_parameters(size)
    yield from recurrence_cases(size.op_lengths)
    yield from oscillator_cases(size.oscillators)


def _prefill(family: str, shape: Shape, T: int, *, beside: bool = True) -> Case:
    def make() -> dict[str, Contender]:
        tokens = shape.tokens(T)
        ways = partial(peers.mlx_prefill, tokens=tokens), partial(peers.torch_prefill, tokens=tokens)
        # Their loops over time take minutes of a long prompt.
        found = peers.contenders(family, shape, *ways, torch=T <= 512, plain=T <= 512) if beside else {}
        return found | {"ours": ours.prefill(ours.build(family, shape), tokens)}

    return _case(f"{family}/prefill/T{T}", f"{family}: prefill", shape, shape.batch, T, make)


def _training(family: str, shape: Shape, T: int, *, beside: bool = True) -> Case:
    def make() -> dict[str, Contender]:
        tokens = shape.tokens(T + 1)
        ways = partial(peers.mlx_training, tokens=tokens), partial(peers.torch_training, tokens=tokens)
        # Differentiating transformers' own loop over time did not end in minutes at T = 512.
        found = peers.contenders(family, shape, *ways, torch=T <= 512, plain=T <= 128) if beside else {}
        return found | {"ours": ours.time_training(ours.build(family, shape), tokens)}

    return _case(f"{family}/train/T{T}", f"{family}: training step", shape, shape.batch, T, make)


def _decoding(family: str, shape: Shape, batch: int, count: int, bits: int | None = None) -> Case:
    def make() -> dict[str, Contender]:
        found = {}
        if family in peers.MLX_LM:
            model = ours.in_bits(peers.mlx_lm(family, shape), bits)
            found["mlx-lm"] = peers.mlx_decoding(model, batch, count)
        return found | {
            "ours": ours.time_decoding(ours.in_bits(ours.build(family, shape), bits), batch, count)
        }

    words = f" of {bits} bits" if bits else ""
    key = f"{family}/decode/B{batch}" + (f"/{bits}bits" if bits else "")
    return _case(key, f"{family}{words}: tokens one by one", shape, batch, count, make)


def _author(shape: Shape) -> Case:
    """RWKV-7 beside the package of its author, which reads one row at a time."""
    T = 512

    def make() -> dict[str, Contender]:
        tokens = shape.tokens(T, batch=1)
        found = {"rwkv": peers.rwkv_prefill(shape, tokens)} if peers.has_rwkv() else {}
        return found | {"ours": ours.prefill(ours.build("rwkv7", shape), tokens)}

    return _case("rwkv7/author/T512", "rwkv7: prefill of one row", shape, 1, T, make)


def _wide_prefill(size: Sizes) -> Case:
    """For the share of the machine's matrix rate."""
    shape, T = Shape(size.wide, size.shape.layers, size.shape.vocabulary, size.shape.batch), 512

    def make() -> dict[str, Contender]:
        return {"ours": ours.prefill(ours.build("mamba", shape), shape.tokens(T))}

    return _case("mamba/prefill/wide", "mamba: prefill, wide", shape, shape.batch, T, make)


def _equal_parameters(size: Sizes) -> Case:
    """K-SSM beside Mamba with as many parameters, as near as whole layers allow."""
    shape, T = size.shape, 512

    def make() -> dict[str, Contender]:
        tokens = shape.tokens(T + 1)
        kssm = ours.build("kssm", shape)
        # By layers, since the width sets how large the matrices are, and with it the speed.
        sized = [Shape(shape.width, n, shape.vocabulary, shape.batch) for n in range(1, 4 * shape.layers)]
        wanted = ours.parameters(kssm)
        mamba = min((ours.build("mamba", s) for s in sized), key=lambda m: abs(ours.parameters(m) - wanted))
        names = [f"{m.model_type}, {ours.parameters(m) / 1e6:.2f} M" for m in (mamba, kssm)]
        return dict(zip(names, (ours.time_training(m, tokens) for m in (mamba, kssm))))

    return _case("kssm/train/equal", "training step at equal parameters", shape, shape.batch, T, make)


def _case(key: str, title: str, shape: Shape, batch: int, T: int, make) -> Case:
    title = f"{title}, d {shape.width}, {shape.layers} layers, B {batch}, T {T}"
    family, what, *_ = key.split("/")
    facts = {"family": family, "what": what, "T": T, "B": batch, "d": shape.width, "layers": shape.layers}
    return Case(key, title, batch * T, "tokens", make, {**facts, "vocabulary": shape.vocabulary})
