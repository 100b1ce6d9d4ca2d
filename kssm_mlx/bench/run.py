"""Measure, show, write: the whole of `kssm bench`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from kssm_mlx import environment, files
from kssm_mlx.bench import report
from kssm_mlx.bench.measure import Case, Timing, compare
from kssm_mlx.bench.targets import outcomes
from kssm_mlx.checks.machine.fitness import measure_rates as machine_rates
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

    Cases that the folder holds from an earlier run and that are not run now stay, with their own date. The
    JSON is written after every case: a machine that runs out of memory in one keeps those before it.
    show: called with each case's record as soon as it is measured.
    Raises: ConfigError when there is nothing to run.
    """
    if not cases:
        raise ConfigError("no case is left to run; see the names in benchmarks or leave --only out")
    folder.mkdir(parents=True, exist_ok=True)
    facts = environment.facts()
    path = folder / f"{device_name(facts)}.json"
    records, rates, results = _read_earlier_records(path), machine_rates(), {}
    try:
        for case in cases:
            measured = record(case, compare(case.make(), turns, budget), facts["commit"])
            records[case.key] = measured
            if show:
                show(measured)
            results = _drop_nan(summary(list(records.values()), facts, rates))
            files.replace(path, json.dumps(results, indent=1) + "\n")
    finally:
        if results:
            report.write(results, folder, path.stem)
    return path


def _read_earlier_records(path: Path) -> dict[str, dict[str, Any]]:
    """The records of an earlier run by key; none where there was none, or one of another format."""
    try:
        found = {r["key"]: r for r in json.loads(path.read_text("utf-8"))["cases"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if all("measured" in r for r in found.values()) else {}


def summary(records: list[dict[str, Any]], facts: dict[str, Any], rates: dict[str, float]) -> dict[str, Any]:
    """Everything the report says."""
    powers, shares = exponents(records), roofline(records, rates)
    timings = {r["key"]: [_timing(t) for t in r["timings"]] for r in records}
    return {
        "environment": facts,
        "rates": rates,
        "cases": records,
        "exponents": powers,
        "roofline": shares,
        "targets": [
            {
                **asdict(o.target),
                "ratio": o.ratio,
                "cpu_ratio": o.cpu_ratio,
                "turns": o.turns,
                "reached": o.reached,
            }
            for o in outcomes(timings, powers, shares)
        ],
    }


def record(case: Case, timings: list[Timing], commit: str | None) -> dict[str, Any]:
    """One case as plain data; a fact that is a function is computed now."""
    facts = {name: value() if callable(value) else value for name, value in case.facts.items()}
    head = {"key": case.key, "title": case.title, "work": case.work, "unit": case.unit}
    measured = {"on": date.today().isoformat(), "commit": commit}
    return {**head, "measured": measured, "facts": facts, "timings": [asdict(t) for t in timings]}


def _timing(values: dict[str, Any]) -> Timing:
    """The inverse of `asdict` and a way through JSON, where a number that is none is null."""
    may_be_none = ("cpu_ratio", "peak_megabytes")
    nan = float("nan")
    whole: dict[str, Any] = {k: nan if v is None and k not in may_be_none else v for k, v in values.items()}
    return Timing(**whole)


def exponents(records: list[dict[str, Any]]) -> dict[str, float]:
    """b of time ~ T^b for every recurrence in its usual form, by least squares on the logarithms."""
    points: dict[str, list[tuple[float, float]]] = {}
    for r in records:
        if "op" in r["facts"] and not r["timings"][-1]["failed"]:
            point = math.log(r["facts"]["T"]), math.log(r["timings"][-1]["milliseconds"])
            points.setdefault(r["facts"]["op"], []).append(point)
    return {op: _slope(p) for op, p in points.items() if len(p) > 1}


def _slope(points: list[tuple[float, float]]) -> float:
    import numpy as np

    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


def roofline(records: list[dict[str, Any]], rates: dict[str, float]) -> dict[str, float]:
    """Share of the matrix rate that each of Mamba's prefills reaches, counting its matrix products only."""
    shares = {}
    for r in records:
        facts, own = r["facts"], r["timings"][-1]
        if facts.get("family") == "mamba" and facts.get("what") == "prefill" and not own["failed"]:
            done = r["work"] * mamba_products(facts["d"], facts["layers"], facts["vocabulary"])
            shares[r["key"]] = done / (own["milliseconds"] / 1e3) / 1e9 / rates["gemm_gflops"]
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


def _drop_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _drop_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_drop_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
