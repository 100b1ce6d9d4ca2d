"""The benchmark writes what it measured, and only that: on cases of milliseconds."""

from __future__ import annotations

import json
import math

import mlx.core as mx
import pytest

from kssm_mlx.bench import peers, report
from kssm_mlx.bench.measure import Case, Contender, Timing, arrays, compare
from kssm_mlx.bench.ours import Shape
from kssm_mlx.bench.recurrences import OPS
from kssm_mlx.bench.run import bench, exponents, mamba_products
from kssm_mlx.bench.suite import Sizes, cases
from kssm_mlx.bench.targets import TARGETS, outcomes
from kssm_mlx.errors import ConfigError

TINY = Sizes(
    Shape(width=64, layers=1, vocabulary=32, batch=1),
    wide=64,
    lengths=(8, 16),
    training_lengths=(8,),
    op_lengths=(8, 16),
    oscillators=(100,),
    decoded=2,
)


def chosen(*parts: str) -> list[Case]:
    return [case for case in cases(TINY) if case.key.startswith(parts)]


def test_everything_is_written_and_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "has_transformers", lambda: False)
    shown = []
    keys = ("mamba/prefill/", "ops/wkv4", "oscillators/mean-field")
    path = bench(chosen(*keys), tmp_path, turns=5, show=shown.append, budget=0)
    results = json.loads(path.read_text())
    assert [r["key"] for r in results["cases"]] == [r["key"] for r in shown] == [c.key for c in chosen(*keys)]
    for record in results["cases"]:
        assert [t["failed"] for t in record["timings"]] == [""] * len(record["timings"])
        assert all(t["turns"] == 5 and t["milliseconds"] > 0 for t in record["timings"])
        assert record["timings"][0]["ratio"] == 1
    assert set(results["exponents"]) == {"wkv4"}
    assert results["cases"][-1]["facts"]["error"]["ours"] < 1e-3
    assert 0 < min(results["roofline"].values()) < 1
    text = path.with_suffix(".md").read_text()
    assert all(record["title"] in text for record in results["cases"])
    pictures = sorted(tmp_path.glob("*.png"))
    assert [p.stem.rsplit("-", 1)[1] for p in pictures] == ["memory", "peers", "throughput"]
    assert all(p.read_bytes().startswith(b"\x89PNG") and f"({p.name})" in text for p in pictures)


@pytest.mark.parametrize("part", ["mamba2/", "rwkv/", "rwkv7/", "kssm/", "ops/mobius_scan", "ops/wkv7"])
def test_every_family_runs(part, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "has_transformers", lambda: False)
    results = json.loads(bench(chosen(part)[-1:], tmp_path, turns=5, budget=0).read_text())
    assert all(t["milliseconds"] > 0 for t in results["cases"][0]["timings"])


def test_turns_are_interleaved_and_at_least_five():
    calls = []
    contenders = {name: Contender(lambda name=name: calls.append(name)) for name in "ab"}
    timings = compare(contenders, turns=7, budget=0)
    assert calls == ["a", "b"] + ["a", "b"] * 5
    assert [t.turns for t in timings] == [5, 5]


def test_what_is_not_run_again_stays_with_its_own_date(tmp_path):
    def case(key):
        return Case(key, key, 1, "tokens", lambda: {"ours": arrays(mx.ones, 1)})

    path = bench([case("x/prefill/T1"), case("y/prefill/T1")], tmp_path, turns=5)
    old = json.loads(path.read_text())
    old["cases"][0]["measured"]["on"] = "2020-01-01"
    path.write_text(json.dumps(old))
    records = json.loads(bench([case("y/prefill/T1")], tmp_path, turns=5).read_text())["cases"]
    assert [(r["key"], r["measured"]["on"] == "2020-01-01") for r in records] == [
        ("x/prefill/T1", True),
        ("y/prefill/T1", False),
    ]
    path.write_text('{"cases": [{"key": "of another format"}]}')
    records = json.loads(bench([case("y/prefill/T1")], tmp_path, turns=5).read_text())["cases"]
    assert [r["key"] for r in records] == ["y/prefill/T1"]


def test_a_contender_that_fails_is_reported_and_the_rest_goes_on(tmp_path):
    def crash():
        raise RuntimeError("Resource limit (499000) exceeded")

    case = Case(
        "x/prefill/T1", "x", 1, "tokens", lambda: {"peer": Contender(crash), "ours": arrays(mx.ones, 1)}
    )
    results = json.loads(bench([case], tmp_path, turns=5).read_text())
    peer, ours = results["cases"][0]["timings"]
    assert "499000" in peer["failed"]
    assert peer["milliseconds"] is None and ours["ratio"] is None
    assert ours["milliseconds"] > 0
    assert "499000" in next(tmp_path.glob("*.md")).read_text()


def test_nothing_to_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no case is left"):
        bench([], tmp_path)


def timing(name: str, milliseconds: float, **more) -> Timing:
    return Timing(name, milliseconds, 100 / milliseconds, cpu_ratio=90 / milliseconds, **more)


def test_outcomes_compare_with_the_fastest_peer_named():
    key = "mamba/train/T512"
    measured = [
        timing("mlx-lm", 100, peak_megabytes=100.0),
        timing("transformers", 50),
        timing("transformers, mambapy", 40),
        timing("ours", 20, peak_megabytes=50.0),
    ]
    found = {o.target.what: o for o in outcomes({key: measured}) if o.target.key == key}
    ratios = {what: (o.ratio, o.reached) for what, o in found.items()}
    assert ratios["Mamba training step, T 512, against mlx-lm"] == (5, "must")
    assert ratios["Mamba training step, T 512, against the best torch path"] == (2, "must")
    assert ratios["Mamba peak training memory, T 512, against mlx-lm"] == (0.5, "must")
    missing = {o.reached for o in outcomes({}) if o.ratio is None}
    assert missing == {"not measured"}


def test_exponents_and_shares_are_targets_too():
    powers = {"wkv4": 1.0, "wkv7": 1.05, "mobius_scan": 1.2}
    found = {o.target.key: o.reached for o in outcomes({}, powers, {"mamba/prefill/wide": 0.3})}
    assert [found[op] for op in powers] == ["aim", "must", "missed"]
    assert found["mamba/prefill/wide"] == "must"
    assert found["ssd"] == "not measured"


def test_every_target_names_a_case_of_the_default_or_the_full_suite():
    full = Sizes(TINY.shape, 64, (128, 512, 2048), (128, 512, 2048), (8,), (100,), 2)
    assert {t.key for t in TARGETS} <= {case.key for case in cases(full)} | set(OPS)


def test_exponents_are_of_the_fitted_power():
    def at(T):
        return {"facts": {"op": "x", "T": T}, "timings": [{"failed": "", "milliseconds": 3 * T**1.25}]}

    assert math.isclose(exponents([at(T) for T in (8, 64, 512)])["x"], 1.25)


def test_products_of_mamba_by_hand():
    """d 256: in 2x512x256, x_proj 48x512, dt 512x16, out 256x512, head 1024x256; two FLOPs each."""
    block = 1024 * 256 + 48 * 512 + 512 * 16 + 256 * 512
    assert mamba_products(256, 4, 1024) == 2 * (4 * block + 1024 * 256)


def test_a_failed_row_has_all_cells():
    record = {"work": 1, "unit": "tokens", "timings": [{"name": "peer", "failed": "why"}]}
    assert [len(row) for row in report.rows(record)] == [len(report.HEADER)]
