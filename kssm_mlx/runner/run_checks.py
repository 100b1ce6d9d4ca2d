"""The checks of a run at their three times: before step 1, at every evaluation, at the end.

A failed check stops the run unless a waiver says why it need not. With `--no-verify` nothing is stopped: it
is said what would have been, and the verdicts are recorded as they are. So it is at the end of a smoke run
with those checks that judge what was learned, which a few steps cannot have taught; the others stop it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kssm_mlx import files
from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import REGISTRY, Check, Context, require_no_failure
from kssm_mlx.files import explain_write_errors
from kssm_mlx.models.base import with_parameters
from kssm_mlx.runs.layout import PROBES
from kssm_mlx.runs.records import read_metrics, read_rows, write_checks
from kssm_mlx.training.json_lines import to_plain
from kssm_mlx.training.state import TrainState, with_knobs

ALIASES = {"passkey": "D11"}
LEARNING = ("C37", "N18")  # of what is learned, beside those that need a trained model: a trend, a batch


@dataclass(frozen=True)
class RunChecks:
    """Asks the checks of `context`; waivers: id -> reason; verify: whether a failure stops the run.

    Every method raises CheckFailed naming all that failed.
    """

    context: Context
    waivers: dict[str, str]
    verify: bool
    console: Console
    _told: set[str] = field(default_factory=set)

    def before(self) -> None:
        self._run_suite("P", "preflight", "before step 1")

    def during(self, step: int, state: TrainState) -> None:
        """The model holds the parameters of that step while it is asked; the last answer is kept."""
        parameters = with_knobs(state.evaluated, state.untrained)
        with_parameters(self.context.model, parameters, lambda: self._ask_during(step))

    def _ask_during(self, step: int) -> None:
        if suite.list_suite("R"):
            self._run_suite("R", "during", f"after step {step}")
        asked = self.context.recipe.eval
        if asked.checks and step % (asked.checks_every or asked.every) == 0:
            write_probes(self.context.run_folder, step, self._probe(asked.checks))

    def _probe(self, ids: list[str]) -> list[Check]:
        """What is measured along the way and judged by nobody: of an untrained model too."""
        context = replace(self._context_now("R"), untrained=True)
        return suite.run_suite(context, select_probes(ids))

    def after(self) -> None:
        self._run_suite("S", "final", "at the end", smoke=bool(self.context.recipe.smoke))

    def _run_suite(self, level: str, stage: str, when: str, smoke: bool = False) -> None:
        """smoke: whether what was not learned stops nothing."""
        found = suite.run_suite(self._context_now(level), level, self.waivers)
        write_checks(Path(self.context.run_folder), stage, [c.to_json() for c in found])
        spared = [c for c in found if not self.verify or (smoke and _judges_learning(c))]
        require_no_failure(c for c in found if c not in spared)
        for check in spared:
            if not check.ok:
                self._log_verdicts(check, when, "--smoke" if self.verify else "--no-verify")

    def _context_now(self, level: str) -> Context:
        """With the rows logged so far; there are none before step 1."""
        if level == "P":
            return self.context
        return replace(self.context, history=read_metrics(self.context.run_folder))

    def _log_verdicts(self, check: Check, when: str, mercy: str) -> None:
        """Once per check: what fails at one evaluation mostly fails at the next."""
        if check.id not in self._told:
            self._told.add(check.id)
            self.console.print(
                f"{mercy}: would have been stopped {when} by {check.id} {check.title}: "
                f"got {check.got}, expected {check.expected}",
                markup=False,
                soft_wrap=True,
            )


def select_probes(ids: list[str]) -> tuple[str, ...]:
    """The ids of eval.checks, names that people know among them. Raises: ConfigError for one there is not."""
    return suite.select_ids(ALIASES.get(id, id) for id in ids)


def write_probes(folder: Path | None, step: int, checks: list[Check]) -> None:
    """Add their numbers to probes.jsonl, in place of what a run that was cut off had written of this step."""
    assert folder is not None
    # A run that goes on from a checkpoint passes these steps once more.
    kept = [row for row in read_rows(folder / PROBES) if row["step"] < step]
    rows = [
        {
            "step": step,
            "id": c.id,
            "title": c.title,
            "verdict": c.verdict,
            "got": c.got,
            "numbers": _numbers(c),
        }
        for c in checks
    ]
    text = "".join(json.dumps(row) + "\n" for row in (*kept, *rows))
    with explain_write_errors(PROBES, folder):
        files.replace(folder / PROBES, text)


def _numbers(check: Check) -> dict[str, float]:
    """By name; those of a table as "cosine, block 0"."""
    flat: dict[str, Any] = {}
    for name, value in check.numbers.items():
        flat |= (
            {f"{name}, {key}": x for key, x in value.items()} if isinstance(value, dict) else {name: value}
        )
    plain = {name: to_plain(value) for name, value in flat.items()}
    return {n: x for n, x in plain.items() if isinstance(x, int | float) and not isinstance(x, bool)}


def _judges_learning(check: Check) -> bool:
    return REGISTRY[check.id].needs_training or check.id in LEARNING
