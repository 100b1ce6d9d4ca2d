"""What was measured, as Markdown and as pictures; reads nothing but the results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kssm_mlx import files
from kssm_mlx.bench.measure import LEAST_TURNS, SLOW_SECONDS
from kssm_mlx.reports import style

HEADER = (
    "",
    "ms",
    "per second",
    "speed against the first",
    "by CPU time",
    "turns",
    "peak MB",
    "first call s",
)
OWN = "ours"


def rows(record: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The cells of one case, a row per contender."""
    first = record["timings"][0]
    for t in record["timings"]:
        if t["failed"]:
            yield (t["name"], "failed", "", t["failed"], *[""] * 4)
            continue
        yield (
            t["name"],
            f"{t['milliseconds']:.1f}",
            f"{record['work'] / t['milliseconds'] * 1e3:,.0f} {record['unit']}",
            _range(t, first),
            _times(t["cpu_ratio"]),
            str(t["turns"]),
            "" if t["peak_megabytes"] is None else f"{t['peak_megabytes']:.0f}",
            f"{t['first_call_seconds']:.1f}",
        )


def _range(t: dict[str, Any], first: dict[str, Any]) -> str:
    """Empty where the first contender failed: there is nothing to compare with."""
    if t["ratio"] is None or math.isnan(t["ratio"]):
        return ""
    return f"{t['ratio']:.2f}x ({t['low']:.2f} to {t['high']:.2f})" + _mark_few(
        min(t["turns"], first["turns"])
    )


def _mark_few(turns: int | None) -> str:
    """A mark on a ratio that comes of too few turns."""
    return "" if turns is None or turns >= LEAST_TURNS else f", n={turns}"


def write(results: dict[str, Any], folder: Path, name: str) -> None:
    """`<name>.md` and its pictures `<name>-*.png`."""
    pictures = [draw(results["cases"], folder, name) for draw in (_over_length, _over_memory, _against_peers)]
    files.replace(folder / f"{name}.md", markdown(results, name, [p for p in pictures if p]))


def markdown(results: dict[str, Any], name: str, pictures: list[str]) -> str:
    facts, rates = results["environment"], results["rates"]
    versions = ", ".join(f"{p} {facts['packages'].get(p)}" for p in ("mlx", "mlx-lm"))
    gemm, copy = rates["gemm_gflops"], rates["copy_gbytes_per_second"]
    head = [
        f"# Measured on {name}",
        f"{versions}, {facts['cores']} cores, {facts['blas']['library']}, "
        f"switches {facts['switches'] or 'none'}, commit {facts['commit'] or 'unknown'}. "
        f"Matrix products {gemm:.0f} GFLOP/s, copies {copy:.1f} GB/s.",
        "Wall-clock medians of interleaved turns; the range of a ratio is between its quartiles. "
        f"n=1: a peer's call took over {SLOW_SECONDS:.0f} s and was made once; its own spread is unknown. "
        "Peak memory is the most that MLX's arrays held at a time, above what was held before; for torch the "
        "same of its tensors, by its profiler, in a call of its own. Written by `kssm bench` (`make bench`); "
        "do not edit.",
    ]
    parts = [*head, *_targets(results["targets"]), *(f"![{p}]({p})" for p in pictures)]
    parts += _exponents(results["exponents"]) + _roofline(results["roofline"])
    for record in results["cases"]:
        when = "Measured on {on}, commit {commit}.".format(**record["measured"])
        parts += [f"## {record['title']}", when, _table(HEADER, rows(record)), *_notes(record["facts"])]
    return "\n\n".join(parts) + "\n"


def _table(header: tuple[str, ...], body) -> str:
    lines = [header, ("---",) * len(header), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _targets(targets: list[dict[str, Any]]) -> list[str]:
    body = [
        (t["what"], *(_number(t, c) for c in COLUMNS), t["reached"] + _mark_few(t["turns"])) for t in targets
    ]
    return ["## Targets", _table(("what", "must", "aim", "measured", "by CPU time", ""), body)]


COLUMNS = ("must", "aim", "ratio", "cpu_ratio")


def _number(target: dict[str, Any], column: str) -> str:
    value = target[column]
    if value is None or target["of"] in ("speed", "memory"):
        return _times(value)
    return f"{100 * value:.0f} %" if target["of"] == "share" else f"{value:.2f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _exponents(found: dict[str, float]) -> list[str]:
    if not found:
        return []
    body = [(op, f"{b:.3f}") for op, b in found.items()]
    return ["## Time against length, T^b, forward and backward", _table(("op", "b"), body)]


def _roofline(shares: dict[str, float]) -> list[str]:
    if not shares:
        return []
    body = [(key, f"{100 * share:.1f} %") for key, share in shares.items()]
    return [
        "## Share of the measured matrix rate, counting matrix products only",
        _table(("", "share"), body),
    ]


NOTES = {
    "error": ("Error of R against float64", ".1e"),
    "bytes": (
        "Least bytes moved per state and token (inputs twice, outputs twice, gradients of the inputs)",
        ".1f",
    ),
}


def _notes(facts: dict[str, Any]) -> list[str]:
    """A line for each number that every contender of a case has."""
    return [
        f"{title}: " + ", ".join(f"{name} {value:{digits}}" for name, value in facts[fact].items()) + "."
        for fact, (title, digits) in NOTES.items()
        if fact in facts
    ]


# ---------------------------------------------------------------------------------------------------------
# Pictures: one panel per family, a line per contender.


def _by_family(cases: list[dict[str, Any]], what: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for r in cases:
        if r["facts"].get("what") == what and r["key"].rsplit("/", 1)[-1].startswith("T"):
            found.setdefault(r["facts"]["family"], []).append(r)
    return found


def _lines(records: list[dict[str, Any]], value) -> dict[str, list[tuple[int, float]]]:
    """(T, value) of every contender that has one."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for r in records:
        for t in r["timings"]:
            y = None if t["failed"] else value(r, t)
            if y is not None:
                lines.setdefault(t["name"], []).append((r["facts"]["T"], y))
    return lines


def _over_length(cases, folder: Path, name: str) -> str | None:
    speed = lambda r, t: r["work"] / t["milliseconds"] * 1e3  # noqa: E731
    return _panels(cases, folder, f"{name}-throughput.png", ("prefill", "train"), speed, "tokens/s")


def _over_memory(cases, folder: Path, name: str) -> str | None:
    peak = lambda r, t: t["peak_megabytes"] and t["peak_megabytes"] / r["facts"]["B"]  # noqa: E731
    return _panels(cases, folder, f"{name}-memory.png", ("prefill", "train"), peak, "peak MB a row")


def _panels(cases, folder: Path, file: str, kinds: tuple[str, ...], value, label: str) -> str | None:
    grid = {what: _by_family(cases, what) for what in kinds}
    families = list(dict.fromkeys(f for found in grid.values() for f in found))
    if not families:
        return None
    drawn = {(what, f): _lines(grid[what].get(f, []), value) for what in kinds for f in families}
    names = [OWN, *dict.fromkeys(n for lines in drawn.values() for n in lines if n != OWN)]
    with style.picture(folder / file, (3.2 * len(families), 3.0 * len(kinds) + 0.4)) as figure:
        axes = figure.subplots(len(kinds), len(families), squeeze=False)
        for row, what in zip(axes, kinds):
            for ax, family in zip(row, families):
                _draw(ax, drawn[what, family], names)
                ax.set(title=f"{family}, {what}", xlabel="T", ylabel=label)
        known = dict(pair[::-1] for ax in axes.flat for pair in zip(*ax.get_legend_handles_labels()))
        shown = [n for n in names if n in known]
        figure.legend([known[n] for n in shown], shown, loc="outside lower center", ncols=6)
    return file


def _draw(ax, lines: dict[str, list[tuple[int, float]]], names: list[str]) -> None:
    """names: of all panels, so that a contender has one colour in all of them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for name in (n for n in names if n in lines):
        colour = style.PALETTE[names.index(name) % len(style.PALETTE)]
        ax.plot(*zip(*lines[name]), marker="o", markersize=4, color=colour, label=name)
    if lines:
        ax.set(xscale="log", yscale="log")
        lengths = sorted({T for points in lines.values() for T, _ in points})
        ax.set_xticks(lengths, [f"{T:,}" for T in lengths])
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(_few_digits)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
        ax.tick_params(labelsize=7, which="both")


def _few_digits(value: float, _) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def _against_peers(cases, folder: Path, name: str) -> str | None:
    """Our speed over each peer's, one dot per case."""
    from matplotlib.ticker import LogLocator, NullFormatter

    bars = []
    for r in cases:
        own = r["timings"][-1]
        if r["facts"].get("family") and own["name"] == OWN and not own["failed"]:
            peers = [t for t in r["timings"][:-1] if not t["failed"]]
            bars += [(_bar(r, t), t["milliseconds"] / own["milliseconds"]) for t in peers]
    if not bars:
        return None
    file = f"{name}-peers.png"
    with style.picture(folder / file, (7.0, 0.8 + 0.26 * len(bars))) as figure:
        ax = figure.subplots()
        labels, ratios = zip(*bars[::-1])
        places = range(len(bars))
        colours = [style.PALETTE[0 if x >= 1 else 1] for x in ratios]
        # From 1, which is "as fast": on a logarithmic axis a bar has no other beginning.
        ax.hlines(places, 1, ratios, colors=colours, linewidth=1.5)
        ax.scatter(ratios, places, c=colours, s=22, zorder=3)
        ax.axvline(1, color=style.INK, linewidth=0.8)
        ax.set(xscale="log", xlabel="times as fast as the peer", title="ours against peers")
        ax.set_yticks(places, labels)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(_few_digits)
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(-0.7, len(bars) - 0.3)
        ax.tick_params(axis="y", labelsize=7)
    return file


def _bar(record: dict[str, Any], peer: dict[str, Any]) -> str:
    return f"{record['key']} : {peer['name']}{_mark_few(peer['turns'])}"
