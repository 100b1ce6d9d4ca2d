"""`kssm doctor`: what this machine has, whether it is fit, and what to do where it is not."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Look at this machine: versions, device, BLAS, compiler, limits, GPU kernels, and measured speeds.

    Exit code 0 if numbers are right here (even if slow), 1 if something is broken.
    """
    from kssm_mlx import environment
    from kssm_mlx.checks.machine import fitness, kernels

    facts, speed = environment.facts(), fitness.measure_rates()
    checks = [*fitness.examine_machine(facts), *kernels.examine_kernels()]
    if as_json:
        import json

        print(
            json.dumps({"facts": facts, "measured": speed, "checks": [c.to_json() for c in checks]}, indent=2)
        )
    else:
        _show(facts, speed, checks)
    raise typer.Exit(0 if all(c.ok for c in checks) else 1)


def _show(facts: dict[str, Any], speed: dict[str, float], checks: list) -> None:
    from rich.text import Text

    from kssm_mlx.cli.tables import COLOURS, console, show, table

    words = {"pass": "ok", "warn": "attention", "fail": "broken"}
    screen = console()
    show(screen, table(("what", "here"), _lines(facts, speed), "this machine"))
    rows = [
        (Text(words[c.verdict], style=COLOURS[c.verdict]), f"{c.id} {c.title}", c.got, c.expected)
        for c in checks
    ]
    show(screen, table(("", "what", "got", "expected"), rows, "is it fit?"))
    for c in checks:
        if c.fix:
            screen.print(f"{c.id} {c.title}: {c.fix}", soft_wrap=True, highlight=False)


def _lines(facts: dict[str, Any], speed: dict[str, float]) -> list[tuple[str, str]]:
    """The facts in reading order; the full set is in `--json`."""
    p, device = facts["packages"], facts["device"]
    return [
        ("kssm-mlx", f"{facts['kssm_mlx']}  {(facts['commit'] or '')[:12]}"),
        ("python", facts["python"]),
        ("packages", "  ".join(f"{name} {p[name]}" for name in p)),
        ("platform", f"{facts['platform']}, {facts['cores']} cores"),
        ("device", f"{device['type']}  {device.get('device_name', device.get('architecture', ''))}"),
        ("matrix products", f"{speed['gemm_gflops']:.0f} GFLOP/s, float32 (measured)"),
        ("copies", f"{speed['copy_gbytes_per_second']:.1f} GB/s (measured)"),
        ("memory limit", f"{facts['memory_limit_bytes'] / 2**30:.1f} GiB"),
        ("switches", "  ".join(f"{k}={v}" for k, v in facts["switches"].items()) or "none set"),
    ]
