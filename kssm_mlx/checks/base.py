"""A check is a function that measures one property of the apparatus and returns a verdict with numbers.

    @check("C2", level="P", title="no token sees its future", source="liminal.md C2")
    def future_leak(ctx: Context) -> Check: ...

Levels: P pre-flight (seconds), S smoke (minutes), R during a run, G before a claim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from kssm_mlx.errors import CheckFailed, ConfigError, nearest

Verdict = Literal["pass", "fail", "warn", "not measurable", "waived"]


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
    """What checks read. A check that needs something absent answers "not measurable" and says what is missing.

    model: any LanguageModel; config: its configuration; recipe: the Recipe; data: the TokenData;
    tokenizer: the tokenizer the model is used with; initial: parameters before step 1 (flat dict);
    history: rows of metrics.jsonl; seed: of every random draw a check makes.
    """

    model: Any = None
    config: Any = None
    recipe: Any = None
    data: Any = None
    tokenizer: Any = None
    initial: dict[str, Any] | None = None
    history: list[dict[str, Any]] | None = None
    run_folder: Any = None
    seed: int = 0


@dataclass(frozen=True)
class Definition:
    """A registered check: what it measures, its threshold and reason (the docstring), where it comes from."""

    id: str
    level: str
    title: str
    source: str
    run: Callable[[Context], Check]

    @property
    def explanation(self) -> str:
        return (self.run.__doc__ or "").strip()


REGISTRY: dict[str, Definition] = {}


def check(id: str, *, level: str, title: str, source: str):
    """Register a check function under its id; the function's docstring is its definition for readers."""

    def register(function: Callable[[Context], Check]) -> Callable[[Context], Check]:
        if id in REGISTRY:
            raise ValueError(f"two checks are called {id}: {REGISTRY[id].run.__name__}, {function.__name__}")
        REGISTRY[id] = Definition(id, level, title, source, function)
        return function

    return register


def verdict(id: str, ok: bool | None, got: str, expected: str, fix: str = "", **numbers: Any) -> Check:
    """The Check of a registered id. ok=None means "not measurable": `got` then says why."""
    d = REGISTRY[id]
    word: Verdict = "not measurable" if ok is None else "pass" if ok else "fail"
    return Check(id, d.title, d.level, word, got, expected, "" if ok else fix, numbers)


def apply_waivers(checks: Iterable[Check], waivers: dict[str, str]) -> list[Check]:
    """Failed checks named in `waivers` (id -> reason) become "waived", with the reason recorded."""
    unknown = [w for w in waivers if w not in REGISTRY]
    if unknown:
        raise ConfigError(f"--waive {unknown[0]}: no such check{nearest(unknown[0], REGISTRY)}")
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
