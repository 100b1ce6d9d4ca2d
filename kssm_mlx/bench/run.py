"""Measure, show, write: the whole of `kssm bench`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kssm_mlx import environment, files
from kssm_mlx.bench import report
from kssm_mlx.bench.measure import Case, Timing, compare
from kssm_mlx.bench.targets import outcomes
from kssm_mlx.checks.host import measure as machine_rates
from kssm_mlx.errors import ConfigError

Show = Callable[[dict[str, Any]], None]
SECONDS_PER_CASE = 12.0


def bench(
    cases: Sequence[Case],
    folder: Path,
    *,
    turns: int = 7,
    show: Show | None = None,
    budget: float = SECONDS_PER_CASE,
) -> Path:
    """Run the cases and write `<device>.json`, `.md` and the pictures into `folder`; returns the JSON's path.

    show: called with each case's record as soon as it is measured.
    Raises: ConfigError when there is nothing to run.
    """
    if not cases:
        raise ConfigError("no case is left to run; see the names in benchmarks or leave --only out")
    folder.mkdir(parents=True, exist_ok=True)
    records, timings = [], {}
    for case in cases:
        timings[case.key] = compare(case.make(), turns, budget)
        records.append(record(case, timings[case.key]))
        if show:
            show(records[-1])
    results = {
        "environment": environment.facts(),
        "rates": machine_rates(),
        "cases": records,
        "exponents": exponents(records),
        "targets": [
            {**asdict(o.target), "ratio": o.ratio, "cpu_ratio": o.cpu_ratio, "reached": o.reached}
            for o in outcomes(timings)
        ],
    }
    results["roofline"] = roofline(records, results["rates"])
    name = device_name(results["environment"])
    path = folder / f"{name}.json"
    files.replace(path, json.dumps(_plain(results), indent=1) + "\n")
    report.write(results, folder, name)
    return path


def record(case: Case, timings: list[Timing]) -> dict[str, Any]:
    """One case as plain data; a fact that is a function is computed now."""
    facts = {name: value() if callable(value) else value for name, value in case.facts.items()}
    head = {"key": case.key, "title": case.title, "work": case.work, "unit": case.unit}
    return {**head, "facts": facts, "timings": [asdict(t) for t in timings]}


def exponents(records: list[dict[str, Any]]) -> dict[str, float]:
    """b of time ~ T^b for every recurrence, by least squares on the logarithms."""
    points: dict[str, list[tuple[float, float]]] = {}
    for r in records:
        if "op" in r["facts"] and not r["timings"][0]["failed"]:
            point = math.log(r["facts"]["T"]), math.log(r["timings"][0]["milliseconds"])
            points.setdefault(r["facts"]["op"], []).append(point)
    return {op: _slope(p) for op, p in points.items() if len(p) > 1}


def _slope(points: list[tuple[float, float]]) -> float:
    import numpy as np

    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


def roofline(records: list[dict[str, Any]], rates: dict[str, float]) -> dict[str, float]:
    """Share of the measured matrix rate that Mamba's prefill reaches, counting its matrix products only."""
    shares = {}
    for r in records:
        facts, own = r["facts"], r["timings"][-1]
        if facts.get("family") == "mamba" and facts.get("what") == "prefill" and not own["failed"]:
            done = r["work"] * mamba_products(facts["d"], facts["layers"], facts["vocabulary"])
            shares[r["title"]] = done / (own["milliseconds"] / 1e3) / 1e9 / rates["gemm_gflops"]
    return shares


def mamba_products(d: int, layers: int, vocabulary: int, state: int = 16) -> int:
    """FLOPs per token of the matrix products: in (2d), Δ B C (d/16 + 2N), Δ, out, and the head."""
    channels, rank = 2 * d, -(-d // 16)
    block = d * 2 * channels + channels * (rank + 2 * state) + rank * channels + channels * d
    return 2 * (layers * block + d * vocabulary)


def device_name(facts: dict[str, Any]) -> str:
    """Such as "cpu-x86_64" or "gpu-apple-m2-ultra"."""
    device = facts["device"]
    kind = facts["machine"] if device["type"] == "cpu" else device.get("device_name", facts["machine"])
    return f"{device['type']}-{re.sub(r'[^a-zA-Z0-9_]+', '-', str(kind)).strip('-').lower()}"


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
