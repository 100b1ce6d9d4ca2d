"""`kssm report --html`: everything the reports say of some runs on one page that needs no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from kssm_mlx import files
from kssm_mlx.files import explain_write_errors
from kssm_mlx.reports import card, curves, page
from kssm_mlx.reports.claims import state_claims
from kssm_mlx.reports.comparison import HEADER, summary_rows
from kssm_mlx.reports.phases import plot_phases
from kssm_mlx.reports.run import Run

PAGE = "report.html"
STAGES = {"preflight": "before step 1", "during": "during the run", "final": "at the end"}
WORST_FIRST = ("fail", "warn", "waived", "pass")


def write_run_page(runs: Sequence[Run], folder: Path) -> Path:
    """report.html in `folder`, of one run or of several side by side; returns its path.

    Raises: ConfigError where Plotly is not installed; CheckpointError for a folder that cannot be written.
    """
    page.require_plotly()
    title = runs[0].name if len(runs) == 1 else "Comparison"
    with explain_write_errors("the page", folder):
        folder.mkdir(parents=True, exist_ok=True)
        parts = list(_describe(runs[0]) if len(runs) == 1 else _describe_all(runs))
        files.replace(folder / PAGE, page.document(title, parts))
    return folder / PAGE


def _describe_all(runs: Sequence[Run]) -> Iterator[str | page.Chart]:
    yield curves.draw_arms(runs)
    yield from map(page.paragraph, state_claims(list(runs)))
    yield page.table(HEADER, summary_rows(list(runs)))
    for run in runs:
        yield page.heading(run.name)
        yield curves.draw_loss(run)
        yield from curves.draw_dynamics(run)
        yield page.fold("result and setting", page.table(("", ""), card.result_rows(run)), _setting(run))
        yield from _checks(run)
        yield from _samples(run)


def _describe(run: Run) -> Iterator[str | page.Chart]:
    if question := run.recipe.get("about", {}).get("question"):
        yield page.paragraph(question)
    if expected := card.against_expected(run):
        yield page.paragraph(f"{expected[0].upper()}{expected[1:]}.")
    yield page.table(("result", ""), card.result_rows(run))
    yield curves.draw_loss(run)
    if dynamics := curves.draw_dynamics(run):
        yield page.heading("Oscillators, mean over batch, time and groups")
        yield from dynamics
    if pictures := plot_phases(run):
        yield page.heading("Phases")
        yield from map(page.picture, pictures)
    yield page.heading("Optimisation")
    yield from curves.draw_optimisation(run)
    yield page.heading("Checks")
    yield from _checks(run)
    if run.samples:
        yield page.heading("Samples")
        yield from _samples(run)
    yield page.heading("Setting")
    yield _setting(run)
    if rows := card.environment_rows(run):
        yield page.fold("environment", page.table(("", ""), rows))
    yield page.verbatim("\n".join(card.commands(run)))


def _setting(run: Run) -> str:
    return page.table(("setting", ""), card.setting_rows(run))


def _checks(run: Run) -> Iterator[str]:
    """A part for each stage that shows and hides its checks, those that need a look first."""
    for stage, checks in run.checks.items():
        words = [_word(check) for check in checks]
        counted = Counter(words)
        said = ", ".join(f"{counted[word]} {word}" for word in WORST_FIRST[::-1] if counted[word])
        rows = sorted(zip(words, checks, strict=True), key=lambda pair: _rank(pair[0]))
        lines = [(f"{c['id']} {c['title']}", card.verdict_of(c), c["got"], c["expected"]) for _, c in rows]
        body = page.table(("check", "verdict", "got", "expected"), lines)
        yield page.fold(f"{STAGES.get(stage, stage)}: {said}", body, open="fail" in counted)


def _word(check: dict[str, Any]) -> str:
    return "waived" if check["numbers"].get("waived_because") else check["verdict"]


def _rank(word: str) -> int:
    return WORST_FIRST.index(word) if word in WORST_FIRST else len(WORST_FIRST)


def _samples(run: Run) -> Iterator[str]:
    """One part for each step that wrote samples, the last one open."""
    groups = [(step, list(some)) for step, some in groupby(run.samples, key=lambda sample: sample["step"])]
    for i, (step, samples) in enumerate(groups, 1):
        texts = [page.verbatim(sample.get("prompt", "") + sample["text"]) for sample in samples]
        yield page.fold(f"step {step}", *texts, open=i == len(groups))
