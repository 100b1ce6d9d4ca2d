"""A check is a function that measures one property of the apparatus and returns a verdict with numbers.

    @check("C2", level="P", title="no token sees its future", source="liminal.md C2")
    def future_leak(ctx: Context) -> Check:
        '''What is measured, so that a reader can recompute it.

        Threshold: the number and its reason.
        Caught: which historical failure it would have stopped.
        Sabotage: the minimal broken thing that its test shows it to catch.
        '''

The docstring is the documentation: `kssm verify --explain C2` prints it, docs/checks.md is made of it.
Levels: P pre-flight (seconds), S smoke (minutes), R during a run, G before a claim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from kssm_mlx.errors import CheckFailed, ConfigError, nearest

Verdict = Literal["pass", "fail", "warn", "not measurable", "waived"]


class NotMeasurable(Exception):
    """Raised inside a check when something it needs is absent; the message says what."""


@dataclass(frozen=True)
class Check:
    """One verdict. `got` and `expected` are for people and carry the numbers; `fix` says what to do next."""

    id: str
    title: str
    level: str
    verdict: Verdict
    got: str
    expected: str
    fix: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """False only for a failed check that nobody waived."""
        return self.verdict != "fail"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


@dataclass
class Context:
    """What checks read. A check that needs something absent answers "not measurable" and says what is
    missing.

    model: any LanguageModel; config: its configuration; recipe: the Recipe; data: the TokenData; tokenizer:
    the tokenizer the model is used with; initial: the trainable parameters before step 1 (flat dict);
    history: rows of metrics.jsonl; run_folder: where the run lives; host: the root digest of the verified
    weights that the model started from, None for a fresh one; host_notes: how far these were verified and
    what was found; seed: of every random draw a check makes.
    """

    model: Any = None
    config: Any = None
    recipe: Any = None
    data: Any = None
    tokenizer: Any = None
    initial: dict[str, Any] | None = None
    history: list[dict[str, Any]] | None = None
    run_folder: Any = None
    host: str | None = None
    host_notes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def need(self, *names: str) -> None:
        """Raises: NotMeasurable that names what is absent."""
        absent = [n for n in names if getattr(self, n) is None]
        if absent:
            raise NotMeasurable(f"needs {' and '.join(n.replace('_', ' ') for n in absent)}, none given")

    @property
    def step(self) -> int:
        """Updates the model has had, as far as the history tells."""
        return max((row.get("step", 0) for row in self.history or ()), default=0)


def explain(text: str) -> dict[str, str]:
    """The parts of a check's docstring: "definition", "threshold", "caught", "sabotage", each on one line."""
    first, *rest = re.split(r"\b(Threshold|Caught|Sabotage): ", " ".join(text.split()))
    parts = dict(zip(map(str.lower, rest[::2]), map(str.strip, rest[1::2]), strict=True))
    return {"definition": first.strip(), **parts}


@dataclass(frozen=True)
class Definition:
    """A registered check: its function, whose docstring says what it measures and why, and where it comes
    from.
    """

    id: str
    level: str
    title: str
    source: str
    run: Callable[[Context], Check]

    @property
    def explanation(self) -> dict[str, str]:
        """The docstring's parts, see `explain`."""
        return explain(self.run.__doc__ or "")


REGISTRY: dict[str, Definition] = {}


def check(id: str, *, level: str, title: str, source: str):
    """Register a check function under its id; the function's docstring is its definition for readers."""

    def register(function: Callable[[Context], Check]) -> Callable[[Context], Check]:
        if id in REGISTRY:
            raise ValueError(f"two checks are called {id}: {REGISTRY[id].run.__name__}, {function.__name__}")
        REGISTRY[id] = Definition(id, level, title, source, function)
        return function

    return register


def verdict(id: str, ok: bool | Verdict, got: str, expected: str, fix: str = "", **numbers: Any) -> Check:
    """The Check of a registered id. `ok` is whether it passed, or one of the verdicts in words."""
    d = REGISTRY[id]
    word: Verdict = ok if isinstance(ok, str) else "pass" if ok else "fail"
    return Check(id, d.title, d.level, word, got, expected, "" if word == "pass" else fix, numbers)


def apply_waivers(checks: Iterable[Check], waivers: dict[str, str]) -> list[Check]:
    """Failed checks named in `waivers` (id -> reason) become "waived", with the reason recorded.

    Raises: ConfigError for an id that does not exist or a waiver without a reason.
    """
    for id, reason in waivers.items():
        if id not in REGISTRY:
            raise ConfigError(f"--waive {id}: no such check{nearest(id, REGISTRY)}")
        if not reason.strip():
            raise ConfigError(
                f'--waive {id}: a waiver needs a reason, as in --waive {id}="why it is all right"'
            )
    return [
        replace(c, verdict="waived", numbers={**c.numbers, "waived_because": waivers[c.id]})
        if c.id in waivers and not c.ok
        else c
        for c in checks
    ]


def require(checks: Iterable[Check]) -> None:
    """Raise CheckFailed that names every failed check with its numbers and its fix."""
    failed = [c for c in checks if not c.ok]
    if failed:
        raise CheckFailed(
            " | ".join(f"{c.id} {c.title}: got {c.got}, expected {c.expected}. {c.fix}" for c in failed)
        )
