"""A check is a function that measures one property of the apparatus and returns a verdict with numbers.

    @check("C2", level="P", title="no token sees its future", source="Vaswani et al. 2017, section 3.2.3")
    def future_leak(ctx: Context) -> Check:
        '''What is measured, so that a reader can recompute it.

        Threshold: the number and its reason.
        Caught: which historical failure it would have stopped.
        Sabotage: the minimal broken thing that its test shows it to catch.
        '''

The docstring is the documentation: `kssm verify --explain C2` prints it, docs/checks.md is made of it.
`LEVELS` says when a check runs; a package of your own adds checks the same way (docs/checks-own.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from kssm_mlx.errors import CheckFailed, ConfigError, nearest

Verdict = Literal["pass", "fail", "warn", "not measurable", "waived"]

LEVELS = {
    "P": "before step 1, in seconds",
    "S": "after a smoke run or a run, in minutes",
    "R": "during a run, at every evaluation",
    "G": "before a claim",
}


WEIGHT_LEVELS = {
    "L0": "container",
    "L1": "names",
    "L2": "digests",
    "L3": "values",
    "L4": "arithmetic",
    "L5": "behaviour",
}
# A check takes a Context, the base model under test, facts of the machine, or nothing.
Run = TypeVar("Run", bound=Callable[..., Any])
Given = TypeVar("Given")
START, DOCTOR = "start", "doctor"  # told when a run starts; asked of the machine by `kssm doctor`


class NotMeasurable(Exception):
    """Raised inside a check when something it needs is absent; the message says what."""


def require_value(value: Given | None, name: str) -> Given:
    """The value. Raises: NotMeasurable that says what is absent."""
    if value is None:
        raise NotMeasurable(f"needs {name}, none given")
    return value


@dataclass(frozen=True)
class Check:
    """One verdict. `got` and `expected` are for people and carry the numbers; `fix` says what to do next.

    evidence: what stands behind it, "untrained", "1 run" or "3 seeds"; ran_on: of a large model, its own
    weights or a small one with the same options.
    """

    id: str
    title: str
    level: str
    verdict: Verdict
    got: str
    expected: str
    fix: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    evidence: str = ""
    ran_on: str = ""

    @property
    def ok(self) -> bool:
        """False only for a failed check that nobody waived."""
        return self.verdict != "fail"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as JSON has them: NaN and infinity, which it does not have, are words."""
        return _plain_value({**asdict(self), "ok": self.ok})


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(v) for v in value]
    if hasattr(value, "item"):  # numpy and mlx scalars
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Context:
    """What checks read. A check that needs something absent answers "not measurable" and says what is
    missing. Nobody writes to it, so that no verdict depends on what was asked before; another one is made by
    `dataclasses.replace`.

    model: any LanguageModel; config: its configuration; recipe: the Recipe; data: the TokenData; tokenizer:
    the tokenizer the model is used with; initial: the trainable parameters before step 1 (flat dict);
    history: rows of metrics.jsonl; run_folder: where the run lives; base_digest: the root digest of the
    verified weights that the model started from, None for a fresh one; base_notes: how far these were
    verified and what was found; manifest: the run's manifest.json; seed: of every random draw a check makes;
    intervention and masks: what the recipe's [clamp] and [freeze] hold, see training/constraints.py.

    For comparisons: builder: seed -> a fresh model of the same configuration; seeds: of what is repeated;
    interventions: name -> models.base.Intervention that a claim is about; runs: one Context per run folder
    that a claim is about; baseline: those of the runs that they are compared with.

    untrained: whether a check of what was learned may look at a model that has learned nothing, on random
    ids where there is no text; set for each check: text_only: whether random ids may not stand in for text;
    caveats: a fresh list, to which it adds what its evidence must say.
    """

    model: Any = None
    config: Any = None
    recipe: Any = None
    data: Any = None
    tokenizer: Any = None
    initial: dict[str, Any] | None = None
    history: list[dict[str, Any]] | None = None
    run_folder: Any = None
    base_digest: str | None = None
    base_notes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    manifest: dict[str, Any] | None = None
    intervention: Any = None
    masks: dict[str, Any] = field(default_factory=dict)
    builder: Callable[[int], Any] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    interventions: dict[str, Any] | None = None
    runs: list[Context] | None = None
    baseline: list[Context] | None = None
    untrained: bool = False
    text_only: bool = False
    caveats: list[str] = field(default_factory=list)

    def need(self, *names: str) -> None:
        """Raises: NotMeasurable that names what is absent."""
        absent = [n for n in names if getattr(self, n) is None]
        if absent:
            raise NotMeasurable(f"needs {' and '.join(n.replace('_', ' ') for n in absent)}, none given")

    @property
    def step(self) -> int:
        """Updates the model has had, as far as the history tells."""
        return max((row.get("step", 0) for row in self.history or ()), default=0)

    @property
    def trained(self) -> bool:
        """Whether the model has learned anything: here, or as somebody's base model before."""
        return self.step > 0 or self.base_digest is not None


def parse_explanation(text: str) -> dict[str, str]:
    """The parts of a check's docstring: "definition", "threshold", "caught", "sabotage", each on one line."""
    first, *rest = re.split(r"\b(Threshold|Caught|Sabotage): ", " ".join(text.split()))
    parts = dict(zip(map(str.lower, rest[::2]), map(str.strip, rest[1::2]), strict=True))
    return {"definition": first.strip(), **parts}


@dataclass(frozen=True)
class Definition:
    """A registered check: its function, whose docstring says what it measures and why, and where it comes
    from; the rest as in `check`.
    """

    id: str
    level: str
    title: str
    source: str
    run: Callable[..., Any]
    also: str = ""
    needs_training: bool = False
    passes: int = 0
    false_alarm: float = 0.0

    @property
    def levels(self) -> tuple[str, ...]:
        """When it runs: its own level, then the further ones."""
        return self.level, *self.also

    @property
    def of_runs(self) -> bool:
        """Whether it is given a `Context`; checks of weights, of the machine and at the start are not."""
        return self.level in LEVELS

    @property
    def package(self) -> str:
        """The package that brought it, `kssm_mlx` for our own."""
        return self.run.__module__.partition(".")[0]

    @property
    def explanation(self) -> dict[str, str]:
        """The docstring's parts, see `parse_explanation`, and "chance" where the verdict is drawn."""
        parts = parse_explanation(self.run.__doc__ or "")
        return {**parts, "chance": describe_chance(self.false_alarm)} if self.false_alarm else parts


def describe_chance(rate: float) -> str:
    """How often a drawn verdict is wrong, in words."""
    return f"by the luck of the draw alone it is wrong at most once in {1 / rate:,.0f}"


REGISTRY: dict[str, Definition] = {}


def check(
    id: str,
    *,
    level: str,
    title: str,
    source: str,
    also: str = "",
    needs_training: bool = False,
    passes: int = 0,
    false_alarm: float = 0.0,
):
    """Register a check function under its id; the function's docstring is its definition for readers.

    level: when it runs, a key of `LEVELS` or `WEIGHT_LEVELS`, `START` or `DOCTOR`; also: further levels, such
    as "S"; needs_training: it measures what was learned, so an untrained model is "not measurable" unless
    asked for; passes: how often it calls the model before step 1, each time on 8 x 128 tokens at most (a
    gradient counts as three calls), 0 for one that looks at data or files alone; false_alarm: where the
    verdict is drawn (a threshold on a t, a z or a p), how often luck alone gives the wrong one.
    Raises: ValueError for an id that is taken or not letters and a number, and for an unknown level.
    """
    if not re.fullmatch("[A-Z]+[0-9]+", id):
        raise ValueError(f"a check is called by capitals and a number, as C20, not {id!r}")
    levels = (*LEVELS, *WEIGHT_LEVELS, START, DOCTOR)
    if unknown := {level, *also}.difference(levels):
        raise ValueError(f"check {id}: no level {', '.join(sorted(unknown))}; levels are {', '.join(levels)}")

    def register(function: Run) -> Run:
        if id in REGISTRY:
            raise ValueError(f"two checks are called {id}: {REGISTRY[id].run.__name__}, {function.__name__}")
        REGISTRY[id] = Definition(
            id, level, title, source, function, also, needs_training, passes, false_alarm
        )
        return function

    return register


def run_checks() -> dict[str, Definition]:
    """The checks that are asked of runs, recipes and models, by id."""
    return {id: definition for id, definition in REGISTRY.items() if definition.of_runs}


def verdict(id: str, ok: bool | Verdict, got: str, expected: str, fix: str = "", **numbers: Any) -> Check:
    """The Check of a registered id. `ok` is whether it passed, or one of the verdicts in words."""
    d = REGISTRY[id]
    word: Verdict = ok if isinstance(ok, str) else "pass" if ok else "fail"
    return Check(id, d.title, d.level, word, got, expected, "" if word == "pass" else fix, numbers)


def apply_waivers_to(checks: Iterable[Check], waivers: dict[str, str]) -> list[Check]:
    """Failed checks named in `waivers` (id -> reason) become "waived", with the reason recorded.

    Raises: ConfigError for an id that does not exist or a waiver without a reason.
    """
    for id, reason in waivers.items():
        if id not in (known := run_checks()):
            raise ConfigError(f"waiver of {id}: no such check of runs{nearest(id, known)}")
        if not reason.strip():
            raise ConfigError(
                f'waiver of {id}: a waiver needs a reason, as in --waive {id}="why it is all right"'
            )
    return [
        replace(c, verdict="waived", numbers={**c.numbers, "waived_because": waivers[c.id]})
        if c.id in waivers and not c.ok
        else c
        for c in checks
    ]


def require_no_failure(checks: Iterable[Check]) -> None:
    """Raise CheckFailed that names every failed check with its numbers and its fix."""
    failed = [c for c in checks if not c.ok]
    if failed:
        raise CheckFailed(
            " | ".join(f"{c.id} {c.title}: got {c.got}, expected {c.expected}. {c.fix}" for c in failed)
        )
