"""The benchmark writes what it measured, and only that: on cases of milliseconds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import mlx.core as mx
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from kssm_mlx.bench import peers, recurrences, report
from kssm_mlx.bench.measure import Case, Contender, Timing, arrays, compare
from kssm_mlx.bench.ours import Shape
from kssm_mlx.bench.recurrences import OPS, least_bytes
from kssm_mlx.bench.run import bench, exponents, mamba_products, record, summary
from kssm_mlx.bench.suite import FAMILIES, Sizes, cases, sizes
from kssm_mlx.bench.targets import TARGETS, outcomes
from kssm_mlx.cli import app
from kssm_mlx.errors import ConfigError
from tests.support.launched import ROOT

TINY = Sizes(
    Shape(width=64, layers=1, vocabulary=32, batch=1),
    wide=64,
    lengths=(8, 16),
    training_lengths=(8,),
    mamba_training=(16,),
    own_lengths=(32,),
    op_lengths=(8, 16),
    oscillators=(100,),
    decoded=2,
)
pytestmark = pytest.mark.usefixtures("uncompiled")


def chosen(*parts: str) -> list[Case]:
    return [case for case in cases(TINY) if case.key.startswith(parts)]


def test_everything_is_written_and_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "has_transformers", lambda: False)
    shown = []
    keys = ("mamba/prefill/", "ops/wkv4", "oscillators/mean-field")
    path = bench(chosen(*keys), tmp_path, turns=5, show=shown.append, budget=0)
    results = json.loads(path.read_text())
    assert [r["key"] for r in results["cases"]] == [r["key"] for r in shown] == [c.key for c in chosen(*keys)]
    for found in results["cases"]:
        assert [t["failed"] for t in found["timings"]] == [""] * len(found["timings"])
        assert all(t["turns"] == 5 and t["milliseconds"] > 0 for t in found["timings"])
        assert found["timings"][0]["ratio"] == 1
    assert set(results["exponents"]) == {"wkv4"}
    assert results["cases"][-1]["facts"]["error"]["ours"] < 1e-3
    assert 0 < min(results["roofline"].values()) < 1
    text = path.with_suffix(".md").read_text()
    assert all(found["title"] in text for found in results["cases"])
    pictures = sorted(tmp_path.glob("*.png"))
    assert [p.stem.rsplit("-", 1)[1] for p in pictures] == ["memory", "peers", "throughput"]
    assert all(p.read_bytes().startswith(b"\x89PNG") and f"({p.name})" in text for p in pictures)


@pytest.mark.parametrize("part", ["mamba2/", "rwkv/", "rwkv7/", "kssm/", "ops/mobius_scan", "ops/wkv7"])
def test_every_family_runs(part, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "has_transformers", lambda: False)
    results = json.loads(bench(chosen(part)[-1:], tmp_path, turns=5, budget=0).read_text())
    assert all(t["milliseconds"] > 0 for t in results["cases"][0]["timings"])


def test_a_form_that_takes_minutes_is_left_out_whatever_order_an_op_has_its_arguments_in(monkeypatch):
    """Once the length was read off the last argument, which may be a constant: 24 GB in one graph."""
    monkeypatch.setattr(recurrences, "both_ways", lambda function, inputs: None)
    monkeypatch.setattr(recurrences, "dispatch", SimpleNamespace(kernel=lambda op, impl: "there is one"))
    monkeypatch.setattr(recurrences, "gpu", SimpleNamespace(dialect=lambda: "cpp"))
    for op in OPS:
        longest = recurrences.LONGEST_SERIAL if op in recurrences.SERIAL else recurrences.LONGEST_COMPILED
        for T, forms in ((longest, ["compiled", "kernel"]), (longest + 1, ["kernel"])):
            assert [*recurrences._forms(op, T)] == forms, op


def test_cases_before_one_that_ends_the_process_are_kept(tmp_path):
    """As one that needs more memory than there is."""
    code = (
        "import os\nfrom pathlib import Path\nfrom kssm_mlx.bench.measure import Case, Contender\n"
        "from kssm_mlx.bench.run import bench\n"
        "one = Case('a', 'a', 1, 'calls', lambda: {'ours': Contender(lambda: None)}, {})\n"
        "two = Case('b', 'b', 1, 'calls', lambda: os.kill(os.getpid(), 9), {})\n"
        f"bench([one, two], Path({str(tmp_path)!r}), turns=5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    (path,) = tmp_path.glob("*.json")
    assert [case["key"] for case in json.loads(path.read_text())["cases"]] == ["a"]


def test_what_was_measured_before_an_interrupt_is_in_the_report(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    two = Case("b", "b", 1, "calls", interrupt, {})
    with pytest.raises(KeyboardInterrupt):
        bench([*chosen("ops/conv")[:1], two], tmp_path, turns=5, budget=0)
    (path,) = tmp_path.glob("*.md")
    assert "conv: forward and backward" in path.read_text()


def test_turns_are_interleaved_and_at_least_five():
    calls = []
    contenders = {name: Contender(lambda name=name: calls.append(name)) for name in "ab"}
    timings = compare(contenders, turns=7, budget=0)
    assert calls == ["a", "b"] + ["a", "b"] * 5
    assert [t.turns for t in timings] == [5, 5]


def slow_peer(calls: list[str], **names: bool) -> dict[str, Contender]:
    """Contenders that note their calls, by whether they are eager."""
    return {n: Contender(lambda n=n: calls.append(n), eager=eager) for n, eager in names.items()}


def test_the_first_call_of_a_slow_eager_contender_is_its_only_turn():
    """Any call takes more than 0 seconds."""
    calls = []
    a, b = compare(slow_peer(calls, a=True, b=False), turns=5, budget=0, slow=0)
    assert calls == ["a", "b"] + ["b"] * 5
    assert (a.turns, b.turns, a.ratio) == (1, 5, 1)
    assert a.milliseconds == a.first_call_seconds * 1e3
    assert math.isclose(b.ratio, a.milliseconds / b.milliseconds) and b.low <= b.ratio <= b.high


def test_a_slow_contender_is_held_against_every_turn_of_the_reference():
    calls = []
    a, b = compare(slow_peer(calls, a=False, b=True), turns=5, budget=0, slow=0)
    assert calls == ["a", "b"] + ["a"] * 5
    assert (a.turns, b.turns) == (5, 1)
    assert math.isclose(b.ratio, a.milliseconds / b.milliseconds)


def test_two_slow_contenders_have_one_ratio():
    calls = []
    a, b = compare(slow_peer(calls, a=True, b=True), turns=5, budget=0, slow=0)
    assert calls == ["a", "b"]
    assert b.low == b.ratio == b.high == a.first_call_seconds / b.first_call_seconds


def test_memory_that_mlx_does_not_see_is_measured_in_a_call_of_its_own():
    calls = []

    def peak(run):
        run()
        return 3_000_000

    run = lambda: calls.append(0)  # noqa: E731
    (timing,) = compare({"x": Contender(run, mlx=False, peak=peak)}, turns=5, budget=0)
    assert (timing.peak_megabytes, len(calls)) == (3, 1 + 1 + 5)
    calls.clear()
    (timing,) = compare({"x": Contender(run, mlx=False, eager=True, peak=peak)}, turns=5, budget=0, slow=0)
    assert (timing.peak_megabytes, len(calls)) == (None, 1)


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
    ratio = 100 / milliseconds
    return Timing(name, milliseconds, ratio, 0.9 * ratio, 1.1 * ratio, cpu_ratio=0.9 * ratio, **more)


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


@pytest.mark.parametrize("turns, mark", [(1, ", n=1"), (5, "")])
def test_a_ratio_of_too_few_turns_is_marked(turns, mark):
    measured = [timing("mlx-lm", 800, turns=turns), timing("ours", 100, turns=5)]
    case = Case("mamba/train/T2048", "", 1, "tokens", dict)
    found = record(case, measured, commit=None)
    results = summary([found], {}, {})
    (target,) = [t for t in results["targets"] if "step, T 2048" in t["what"]]
    assert (target["ratio"], target["turns"]) == (8, turns)
    assert f"| 8.00x | 8.00x | must{mark} |" in report._targets([target])[1]
    assert list(report.rows(found))[1][3] == f"1.00x (0.90 to 1.10){mark}"
    assert report._bar(found, found["timings"][0]) == f"mamba/train/T2048 : mlx-lm{mark}"


def test_without_its_reference_a_ratio_is_not_measured():
    """It would be a number that is none, and read as missed."""
    measured = [Timing("mlx-lm", failed="why"), timing("transformers", 50), timing("ours", 20)]
    found = {o.target.key: o.reached for o in outcomes({"mamba/train/T128": measured})}
    assert found["mamba/train/T128"] == "not measured"
    measured[0] = timing("mlx-lm", 100)
    found = {o.target.key: o.reached for o in outcomes({"mamba/train/T128": measured})}
    assert found["mamba/train/T128"] == "aim"


def test_memory_that_was_not_measured_is_no_ratio():
    measured = [timing("mlx-lm", 100), timing("ours", 20, peak_megabytes=50.0)]
    found = {o.target.what: o for o in outcomes({"mamba/train/T512": measured})}
    assert found["Mamba peak training memory, T 512, against mlx-lm"].reached == "not measured"
    assert found["Mamba training step, T 512, against mlx-lm"].ratio == 5


def test_exponents_and_shares_are_targets_too():
    powers = {"wkv4": 1.0, "wkv7": 1.05, "mobius_scan": 1.2}
    found = {o.target.key: o.reached for o in outcomes({}, powers, {"mamba/prefill/wide": 0.3})}
    assert [found[op] for op in powers] == ["aim", "must", "missed"]
    assert found["mamba/prefill/wide"] == "must"
    assert found["ssd"] == "not measured"


def suite_keys(full: bool) -> list[str]:
    return [case.key for case in cases(sizes(full))]


def test_the_default_suite_measures_every_target():
    assert {t.key for t in TARGETS} <= set(suite_keys(full=False)) | set(OPS)
    assert [key for key in suite_keys(full=False) if key.endswith("/train/T2048")] == ["mamba/train/T2048"]


def test_no_case_comes_twice_and_the_full_suite_has_all_of_the_default():
    assert len(set(suite_keys(full=True))) == len(suite_keys(full=True))
    assert set(suite_keys(full=False)) <= set(suite_keys(full=True))


def test_the_full_suite_ends_with_one_long_row_of_ours_alone():
    ends = {f"{family}/{what}/T65536" for family in FAMILIES for what in ("prefill", "train")}
    keys = [key for key in suite_keys(full=True) if key.endswith("/T65536")]
    assert ends == {key for key in keys if not key.startswith("ops/")}
    long = [case for case in cases(TINY) if case.key.endswith("T32")]
    assert len(long) == len(ends)
    assert all((list(case.make()), case.work, case.facts["B"]) == (["ours"], 32, 1) for case in long)


def test_names_are_the_keys_of_the_suite():
    names = CliRunner().invoke(app, ["bench", "--names"]).stdout.split()
    assert names == suite_keys(full=False)
    full = CliRunner().invoke(app, ["bench", "--full", "--names", "--only", "T65536"]).stdout.split()
    assert full == [key for key in suite_keys(full=True) if "T65536" in key]


def test_least_bytes_by_hand():
    """One token of 4 populations: a, k and z of 8 bytes each, all twice, and the gradients of a and k."""
    function, draw = OPS["mobius_scan"]
    assert least_bytes(function, draw(1, 4)) == 4 * (3 * 16 + 2 * 8)


def test_lanes_with_inputs_of_their_own_move_more_than_those_that_share(tmp_path):
    results = json.loads(bench(chosen("ops/mobius_scan/equal"), tmp_path, turns=5, budget=0).read_text())
    (moved,) = (r["facts"]["bytes"] for r in results["cases"])
    assert moved["mobius_scan"] == 64
    assert 2 < moved["selective_scan"] < 2.2
    assert "mobius_scan 64.0." in next(tmp_path.glob("*.md")).read_text()


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


def test_the_picture_of_ratios_begins_at_as_fast(tmp_path, monkeypatch):
    """Its bars began at 0.86 of a logarithmic axis, and its ticks collided."""
    drawn = []

    @contextmanager
    def picture(path, size):
        drawn.append(Figure(size))
        yield drawn[-1]

    monkeypatch.setattr(report.style, "picture", picture)
    own = {"name": report.OWN, "failed": "", "milliseconds": 2.0, "turns": 5}
    peers = [{**own, "name": name, "milliseconds": ms} for name, ms in (("slower", 8.0), ("faster", 1.0))]
    case = {"key": "mamba/train", "facts": {"family": "mamba"}, "timings": [*peers, own]}
    assert report._against_peers([case], tmp_path, "x") == "x-peers.png"
    (ax,) = drawn[0].axes
    stems, dots = ax.collections
    assert sorted(x for x, _ in dots.get_offsets().tolist()) == [0.5, 4.0]
    assert all(segment[0][0] == 1 for segment in stems.get_segments()) and ax.get_xscale() == "log"
    assert not any(text.get_text() for text in ax.get_xticklabels(minor=True))
