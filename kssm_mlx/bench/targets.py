"""What the project set out to reach, looked up in what was measured. A target is a ratio in one case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kssm_mlx.bench.measure import Timing
from kssm_mlx.bench.recurrences import OPS


@dataclass(frozen=True)
class Target:
    """of "speed": that of the last contender of the case `key` over that of `against`, the fastest of those
    named; of "memory": its peak over that of `against`; of "exponent": the power of T of the op `key`; of
    "share": the part of the machine's matrix rate that the case `key` reaches. must, aim: the number that had
    to be reached, and the one hoped for.
    """

    what: str
    key: str
    against: tuple[str, ...]
    must: float
    aim: float
    of: Literal["speed", "memory", "exponent", "share"] = "speed"

    @property
    def small_is_good(self) -> bool:
        return self.of in ("memory", "exponent")


TORCH = ("transformers", "transformers, mambapy", "transformers, associative scan", "mamba.py")
TARGETS = (
    *(
        Target(f"Mamba prefill, T {T}, against mlx-lm", f"mamba/prefill/T{T}", ("mlx-lm",), 4, 10)
        for T in (512, 2048)
    ),
    Target("Mamba training step, T 512, against mlx-lm", "mamba/train/T512", ("mlx-lm",), 4, 8),
    Target("Mamba training step, T 2048, against mlx-lm", "mamba/train/T2048", ("mlx-lm",), 6, 12),
    Target("Mamba prefill, T 512, against the best torch path", "mamba/prefill/T512", TORCH, 2, 5),
    Target("Mamba training step, T 512, against the best torch path", "mamba/train/T512", TORCH, 2, 5),
    Target("Mamba training step, T 128, against the best torch path", "mamba/train/T128", TORCH, 1, 2),
    Target(
        "Mamba peak training memory, T 512, against mlx-lm",
        "mamba/train/T512",
        ("mlx-lm",),
        0.6,
        0.4,
        "memory",
    ),
    Target("Mamba tokens one by one, B 1, against mlx-lm", "mamba/decode/B1", ("mlx-lm",), 1.4, 2),
    Target("Mamba-2 prefill, T 512, against mlx-lm", "mamba2/prefill/T512", ("mlx-lm",), 1.5, 3),
    Target("Mamba-2 training step, T 512, against mlx-lm", "mamba2/train/T512", ("mlx-lm",), 1.5, 3),
    Target("RWKV-4 prefill, T 512, against transformers", "rwkv/prefill/T512", ("transformers",), 1.2, 2),
    Target("RWKV-4 training step, T 512, against transformers", "rwkv/train/T512", ("transformers",), 3, 5),
    Target("RWKV-7 prefill, T 512, against mlx-lm", "rwkv7/prefill/T512", ("mlx-lm",), 5, 10),
    Target("RWKV-7 training step, T 512, against mlx-lm", "rwkv7/train/T512", ("mlx-lm",), 5, 10),
    Target(
        "mobius_scan against selective_scan, equal lanes",
        "ops/mobius_scan/equal",
        ("selective_scan",),
        1 / 1.3,
        1,
    ),
    Target(
        "expanded_scan against selective_scan, equal real states",
        "ops/expanded_scan/equal",
        ("selective_scan",),
        1 / 3,
        1 / 1.5,
    ),
    Target(
        "expanded_ball against expanded_scan, equal real states",
        "ops/expanded_ball/equal",
        ("expanded_scan",),
        1 / 2,
        1 / 1.5,
    ),
    Target(
        "ball_scan against mobius_scan, equal lanes", "ops/ball_scan/equal", ("mobius_scan",), 1 / 2, 1 / 1.67
    ),
    Target("ball_wells, 8 wells, against none", "ops/ball_wells/equal", ("ball_scan",), 1 / 3, 1 / 2),
    Target("258 channels against 256", "ops/selective_scan/width", ("256 channels",), 0.8, 0.95),
    Target("K-SSM training against Mamba at equal parameters", "kssm/train/equal", ("mamba",), 1, 1.5),
    Target(
        "kuramoto_bank against the textbook MLX loop",
        "oscillators/bank/forward",
        ("textbook MLX loop",),
        20,
        50,
    ),
    Target("kuramoto_bank against NumPy", "oscillators/bank/forward", ("numpy float32",), 1, 4),
    *(Target(f"time of {op} over T, exponent", op, (), 1.1, 1.03, "exponent") for op in OPS),
    Target("Mamba prefill, d 512, share of the matrix rate", "mamba/prefill/wide", (), 0.20, 0.35, "share"),
)


@dataclass(frozen=True)
class Outcome:
    """turns: behind the ratio, None where it is no ratio of times. reached: "aim", "must", "missed", or "not
    measured" where the case or the peer is not there.
    """

    target: Target
    ratio: float | None
    cpu_ratio: float | None = None
    turns: int | None = None

    @property
    def reached(self) -> str:
        if self.ratio is None:
            return "not measured"
        sign = -1 if self.target.small_is_good else 1
        good = {name: sign * self.ratio >= sign * getattr(self.target, name) for name in ("aim", "must")}
        return next((name for name, reached in good.items() if reached), "missed")


def outcomes(
    measured: dict[str, list[Timing]],
    exponents: dict[str, float] | None = None,
    shares: dict[str, float] | None = None,
) -> Iterator[Outcome]:
    """Every target against the timings by case key, the exponents by op and the shares by case key."""
    single = {"exponent": exponents or {}, "share": shares or {}}
    for target in TARGETS:
        if target.of in single:
            yield Outcome(target, single[target.of].get(target.key))
        else:
            yield Outcome(target, *_ratios(target, measured.get(target.key, [])))


def _ratios(target: Target, timings: list[Timing]) -> tuple[float | None, float | None, int | None]:
    """By the clock, or in memory, and by processor time: medians of the ratios within a turn. And turns."""
    good = [t for t in timings if not t.failed]
    peers = [t for t in good[:-1] if t.name.startswith(target.against)]
    if not peers or timings[0].failed or timings[-1].failed:
        return None, None, None
    # The fastest of them: a target that the slowest peer sets would say nothing.
    own, peer = good[-1], min(peers, key=lambda t: t.milliseconds)
    if target.of == "memory":
        return _quotient(own.peak_megabytes, peer.peak_megabytes), None, None
    by_cpu = _quotient(own.cpu_ratio, peer.cpu_ratio)
    return own.ratio / peer.ratio, by_cpu, min(t.turns for t in (timings[0], own, peer))


def _quotient(own: float | None, peer: float | None) -> float | None:
    """None where either was not measured."""
    return None if own is None or peer is None else own / peer
