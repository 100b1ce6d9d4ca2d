"""The report of an experiment: what was asked, what was found, and what that rests on.

`Summary` is plain data, made from results.jsonl alone (`experiments.summary`); nothing here opens a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kssm_mlx import files
from kssm_mlx.files import explain_write_errors
from kssm_mlx.metrics.stats import Comparison
from kssm_mlx.reports.card import markdown_table
from kssm_mlx.reports.page import write_page
from kssm_mlx.reports.style import INK, MUTED, PALETTE, Curve, draw_curve, picture

ARMS, DIFFERENCES, LENGTHS = "arms.png", "differences.png", "lengths.png"
UNITS = {
    "nats_per_token": "nats/token",
    "best_nats_per_token": "nats/token",
    "bits_per_byte": "bits/byte",
    "parameters": "",
    "accuracy": "share right",
    "skill": "skill",
}

# Of a verdict, in the picture of differences: colour and marker.
LOOKS: dict[str, tuple[str, str]] = {
    "supported": (PALETTE[0], "o"),
    "contradicted": (PALETTE[1], "X"),
    "no difference of interest": (PALETTE[2], "D"),
    "undecided": (MUTED, "s"),
}


@dataclass(frozen=True)
class ArmSummary:
    """values: seed -> metric. low, high: the 95 % interval of the mean over seeds, NaN for one. curves: one
    list of [step, value] per seed. failed: seed -> what stopped it. lengths: length of a row -> accuracy at
    its last place, one number per seed.
    """

    name: str
    values: dict[int, float]
    mean: float
    low: float
    high: float
    parameters: float | None
    curves: list[list[list[float]]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    lengths: dict[int, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimSummary:
    """A claim and what became of it. sentence: the claim in words; word: of `experiments.decide.Verdict`."""

    sentence: str
    question: str
    word: str
    unit: str
    comparison: Comparison
    permutation: float
    level: float
    seeds: int
    paired: bool
    lacking: Sequence[str] = ()
    windows: Comparison | None = None
    test: str = "t"


@dataclass(frozen=True)
class Summary:
    """Everything that a report shows. fixed: one line per version of the design; notes: what else to know."""

    name: str
    question: str
    metric: str
    unit: str
    smoke: bool
    fixed: Sequence[str]
    arms: Sequence[ArmSummary]
    claims: Sequence[ClaimSummary]
    chosen: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def arm_rows(self) -> list[tuple[str, str, str, str]]:
        """One row per arm: name, how many runs, mean, interval."""
        return [(arm.name, _count(arm), _number(arm.mean), _interval(arm.low, arm.high)) for arm in self.arms]


def write_report(summary: Summary, folder: Path) -> list[Path]:
    """report.md, report.html and the pictures in `folder`; returns their paths."""
    with explain_write_errors("the report", folder):
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [plot_arms(summary, folder / ARMS)] if any(arm.curves for arm in summary.arms) else []
        if any(arm.lengths for arm in summary.arms):
            pictures.insert(0, plot_lengths(summary, folder / LENGTHS))
        if summary.claims:
            pictures.append(plot_differences(summary, folder / DIFFERENCES))
        files.replace(folder / "report.md", markdown(summary, pictures))
        files.replace(folder / "report.html", write_page(sections(summary), pictures, summary.name))
    return [folder / "report.md", folder / "report.html", *pictures]


def verdict_rows(summary: Summary) -> list[str]:
    """One line per claim: what is said, what became of it, the numbers."""
    return [f"{claim.sentence}: {claim.word}. {describe_claim(claim)}" for claim in summary.claims]


def describe_claim(claim: ClaimSummary) -> str:
    """The numbers behind a verdict, in words."""
    c = claim.comparison
    if not math.isfinite(c.low):
        known = (
            f"difference {_format_signed(c.difference)} {claim.unit}".rstrip()
            if math.isfinite(c.difference)
            else "no run of both"
        )
        text = f"{known}, {c.n} seed{'s' * (c.n != 1)} without a spread"
    else:
        text = (
            f"{f'{_format_signed(c.difference)} {claim.unit}'.rstrip()} "
            f"[{_format_signed(c.low)}, {_format_signed(c.high)}], "
            f"p {c.p:.2g}{'' if claim.test == 't' else f' by {claim.test}'}"
            f"{f' (permutation {claim.permutation:.2g})' if math.isfinite(claim.permutation) else ''}, "
            f"{claim.seeds} seeds{' paired' if claim.paired else ''}, level {claim.level:.3g}; "
            f"would have found {_number(c.mde)}"
        )
    return f"{text}; lacking {'; '.join(claim.lacking)}" if claim.lacking else text


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs and perhaps a table: (header, rows)."""

    title: str
    paragraphs: Sequence[str] = ()
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None


def sections(summary: Summary) -> list[Section]:
    """The report's content, whatever it is written as."""
    found = [Section("", [*_smoke_notice(summary), *([summary.question] if summary.question else [])])]
    if summary.claims:
        found.append(Section("Verdicts", (), (VERDICT_HEADER, [_verdict_row(c) for c in summary.claims])))
    header = ("arm", "runs", f"{summary.metric}, {summary.unit}".rstrip(", "), "95 %", "parameters")
    rows = [(*row, _parameters(arm)) for row, arm in zip(summary.arm_rows(), summary.arms, strict=True)]
    found.append(Section("Arms", (), (header, rows)))
    if lengths := sorted({length for arm in summary.arms for length in arm.lengths}):
        note = "Share of rows whose last place is right, by length: the mean over seeds, least to most."
        cells = [(arm.name, *(_share(arm.lengths.get(n)) for n in lengths)) for arm in summary.arms]
        found.append(Section("Lengths", [note], (("arm", *map(str, lengths)), cells)))
    found.append(Section("Runs", (), (("arm", "seed", summary.metric), _run_rows(summary))))
    if summary.chosen:
        chosen = Section("Settings chosen", ["Each arm took its best, on a seed that decides nothing else."])
        found.append(
            Section(chosen.title, chosen.paragraphs, (("arm", "settings"), [*summary.chosen.items()]))
        )
    return [*found, Section("What this rests on", [*summary.fixed, *summary.notes])]


VERDICT_HEADER = (
    "claim",
    "verdict",
    "difference",
    "95 %",
    "p (Holm)",
    "p (permutation)",
    "seeds",
    "would have found",
    "over windows or prompts",
)


def _verdict_row(claim: ClaimSummary) -> tuple[str, ...]:
    c, w = claim.comparison, claim.windows
    return (
        claim.sentence,
        claim.word,
        f"{_format_signed(c.difference)} {claim.unit}".strip(),
        _interval(c.low, c.high, signed=True),
        _p(c.p) + ("" if claim.test == "t" else f", {claim.test}"),
        _p(claim.permutation),
        f"{claim.seeds}{' paired' if claim.paired else ''}",
        _number(c.mde),
        ""
        if w is None
        else f"{_format_signed(w.difference)} {_interval(w.low, w.high, signed=True)}, {w.n} units",
    )


def _run_rows(summary: Summary) -> list[tuple[str, str, str]]:
    rows = []
    for arm in summary.arms:
        for seed in sorted({*arm.values, *arm.failed}):
            said = _number(arm.values[seed]) if seed in arm.values else f"stopped: {arm.failed.get(seed, '')}"
            rows.append((arm.name, str(seed), said))
    return rows


def markdown(summary: Summary, pictures: Sequence[Path]) -> str:
    lines = [f"# {summary.name}", ""]
    for section in sections(summary):
        lines += [f"## {section.title}", ""] if section.title else []
        for paragraph in section.paragraphs:
            lines += [paragraph, ""]
        if section.table:
            lines += [markdown_table(*section.table).rstrip("\n"), ""]
        if section.title == "Arms":
            for path in pictures:
                lines += [f"![{path.stem}]({path.name})", ""]
    return "\n".join(lines)


def plot_arms(summary: Summary, path: Path) -> Path:
    """The metric over steps: of each arm the mean of its seeds, between the least and the most."""
    arms = [arm for arm in summary.arms if arm.curves]
    with picture(path, (9, 4.2 + 0.25 * len(arms))) as figure:
        ax = figure.add_subplot()
        for i, arm in enumerate(arms):
            curves = [{step: value for step, value in curve if value is not None} for curve in arm.curves]
            steps = sorted(set.intersection(*(set(curve) for curve in curves)))
            values = np.array([[curve[step] for step in steps] for curve in curves])
            if not steps:
                continue
            curve = Curve(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
            draw_curve(ax, curve, i, len(arms), f"{arm.name} ({_count(arm)})")
        ax.set(xlabel="step", ylabel="nats per token", title=f"{summary.name}: held-out loss")
        figure.legend(loc="outside lower left", ncols=2)
    return path


def plot_lengths(summary: Summary, path: Path) -> Path:
    """Accuracy at the last place over length: of each arm the mean of its seeds, between least and most."""
    arms = [arm for arm in summary.arms if arm.lengths]
    ticks = sorted({length for arm in arms for length in arm.lengths})
    with picture(path, (9, 4.2 + 0.25 * len(arms))) as figure:
        ax = figure.add_subplot()
        for i, arm in enumerate(arms):
            of_seeds = ([f(values) for values in arm.lengths.values()] for f in (np.mean, min, max))
            draw_curve(ax, Curve([*arm.lengths], *of_seeds), i, len(arms), arm.name, size=5, log=True)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(length) for length in ticks])
        ax.set(xlabel="length, tokens", ylabel="right at the last place", ylim=(-0.02, 1.02))
        ax.set_title(f"{summary.name}: accuracy over length")
        figure.legend(loc="outside lower left", ncols=3)
    return path


def plot_differences(summary: Summary, path: Path) -> Path:
    """A forest plot: one claim a line, its difference with the 95 % interval, zero as the line to cross."""
    claims = summary.claims
    with picture(path, (9, 1.6 + 0.55 * len(claims))) as figure:
        ax = figure.add_subplot()
        ax.axvline(0, color=MUTED, linewidth=1)
        for i, claim in enumerate(reversed(claims)):
            c, (colour, marker) = claim.comparison, LOOKS[claim.word]
            low, high = (x if math.isfinite(x) else c.difference for x in (c.low, c.high))
            ax.plot([low, high], [i, i], color=colour, linewidth=2.2)
            ax.plot([c.difference], [i], marker, color=colour, markersize=7)
            # Beside the axes, where the layout leaves room for it: within, a long word may be cut off.
            ax.text(1.015, i, claim.word, transform=ax.get_yaxis_transform(), va="center", color=INK)
        ax.set_yticks(range(len(claims)), [claim.question for claim in reversed(claims)])
        ax.set(
            xlabel=f"difference, {claims[0].unit}".rstrip(", "), title=f"{summary.name}: differences, 95 %"
        )
        ax.margins(x=0.08)
        ax.set_ylim(-0.7, len(claims) - 0.3)  # of claims without a run yet, too, which no point marks
    return path


def _smoke_notice(summary: Summary) -> list[str]:
    said = "This is a smoke form: tiny runs that show that the experiment works. It decides nothing."
    return [said] if summary.smoke else []


def _count(arm: ArmSummary) -> str:
    runs = f"{len(arm.values)} run{'' if len(arm.values) == 1 else 's'}"
    return f"{runs}, {len(arm.failed)} stopped" if arm.failed else runs


def _parameters(arm: ArmSummary) -> str:
    return f"{arm.parameters:,.0f}" if arm.parameters else ""


def _share(values: list[float] | None) -> str:
    if not values:
        return ""
    spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def _number(x: float) -> str:
    return f"{x:.4g}" if math.isfinite(x) else ""


def _format_signed(x: float) -> str:
    return f"{x:+.4g}" if math.isfinite(x) else ""


def _interval(low: float, high: float, signed: bool = False) -> str:
    shown = _format_signed if signed else _number
    return f"[{shown(low)}, {shown(high)}]" if math.isfinite(low) and math.isfinite(high) else ""


def _p(x: float) -> str:
    return f"{x:.2g}" if math.isfinite(x) else ""
