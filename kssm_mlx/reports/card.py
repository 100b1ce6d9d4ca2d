"""The run card: one page of Markdown that says what was asked, what was done, and what came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kssm_mlx import files
from kssm_mlx.reports.lengths import length_rows
from kssm_mlx.reports.run import Run
from kssm_mlx.terminal import printable

UNITS = {"nats_per_token": "nats/token", "bits_per_byte": "bits/byte", "context_gain": "nats"}
SAMPLES_SHOWN = 3
FACTS = ("python", "platform", "machine", "cores", "kssm_mlx", "commit", "tf32")


def write_card(run: Run, pictures: Sequence[Path] = ()) -> Path:
    """Write card.md into the run folder, with `pictures`, which lie in the folder too, shown in it."""
    path = run.folder / "card.md"
    sections = {
        run.name: run.recipe.get("about", {}).get("question", ""),
        "Result": _result(run),
        "Pictures": "\n\n".join(f"![{p.stem}]({p.relative_to(run.folder).as_posix()})" for p in pictures),
        "Setting": _setting(run),
        "Checks": _checks(run),
        "Samples": _samples(run),
        "Environment": _environment(run),
        "Reproduce": "```sh\n" + "\n".join(commands(run)) + "\n```",
    }
    parts = [
        f"## {title}\n\n{text}".rstrip() for title, text in sections.items() if text or title == run.name
    ]
    files.replace(path, printable("\n\n".join(parts).removeprefix("#")) + "\n")
    return path


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; pipes and line breaks inside cells are made harmless."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def format_measure(value: float | None, error: float | None = None, digits: int = 4) -> str:
    """1.5402 ± 0.0120, or a word where nothing was measured."""
    if value is None:
        return "not measured"
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def against_expected(run: Run) -> str:
    """One sentence on the number the recipe promises, or on its smoke form; empty if there is no number."""
    if run.recipe.get("smoke"):
        return "a smoke run: it tries the machinery, and its numbers mean nothing"
    expected = run.recipe.get("about", {}).get("expected")
    if not expected:
        return ""
    name, value, tolerance = expected["metric"], expected["value"], expected["tolerance"]
    promise = f"expected {name} {value:g} ± {tolerance:g} {UNITS.get(name, '')}".rstrip()
    got = _find_reached(run, name)
    if got is None:
        return f"{promise}; not measured"
    gap = got - value
    where = (
        "within the tolerance"
        if abs(gap) <= tolerance
        else f"{abs(gap):.4f} {'above' if gap > 0 else 'below'}"
    )
    return f"{promise}; reached {got:.4f}, {where}"


def _find_reached(run: Run, name: str) -> float | None:
    """A number of the best evaluation, of the last that has it, of the last step (as R), or of a check."""
    if name in (run.best or {}):
        return (run.best or {})[name]
    for kind in ("eval", "train"):
        _, values = run.series(kind, name)
        if values.size:
            return values[-1]
    return run.measured(name)


def result_rows(run: Run) -> list[tuple[str, str]]:
    """What came out, with units and one standard error, and the ladder of counting on the same text."""
    best = run.best
    if best is None:
        return [("validation", "no evaluation yet")]
    # The error is of nats; in other units it is as large a part of the value.
    nats, bits, se = best["nats_per_token"], best.get("bits_per_byte"), best.get("se")
    return [
        ("validation loss, nats/token", format_measure(nats, se)),
        ("validation bits/byte", format_measure(bits, se * bits / nats if se and bits else None)),
        ("perplexity", format_measure(best.get("perplexity"), best.get("perplexity_se"), 3)),
        (
            "context gain, nats",
            format_measure(run.measured("context_gain"), run.measured("context_gain_se"), 3),
        ),
        *describe_task_scores(best),
        *length_rows(run),
        *((f"{rung} of the same text, nats/token", f"{value:.4f}") for rung, value in run.ladder.items()),
    ]


def describe_task_scores(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an evaluation on a task has beside its loss; of text, nothing."""
    names = {
        "accuracy": "accuracy",
        "ceiling": "accuracy of the best causal predictor",
        "floor": "loss of the best causal predictor, nats/token",
        "skill": "skill, 0 of a guess, 1 of the best",
    }
    return [(words, f"{numbers[name]:.4f}") for name, words in names.items()] if "skill" in numbers else []


def sample_texts(run: Run) -> list[tuple[str, str]]:
    """How each sample of the last evaluation was drawn, and its prompt and continuation."""
    last = run.samples[-1]["step"] if run.samples else None
    shown = [s for s in run.samples if s["step"] == last][:SAMPLES_SHOWN]
    return [(_format_sampling(s), s.get("prompt", "") + s["text"]) for s in shown]


def _result(run: Run) -> str:
    said = [_sentence(against_expected(run)), markdown_table(("", ""), result_rows(run))]
    if run.best:
        at = f"at step {run.best['step']} of {run.steps}"
        said.append(f"Best of {len(run.of('eval'))} evaluations, {at}; ± is one standard error.")
    return "\n\n".join(part for part in said if part)


def _setting(run: Run) -> str:
    return markdown_table(("", ""), setting_rows(run))


def setting_rows(run: Run) -> list[tuple[str, str]]:
    """Parameters, and the sections of the recipe that say what was trained on what."""
    parameters = run.manifest.get("parameters")
    rows = [("parameters", f"{parameters:,}" if parameters else "not recorded")]
    for section in ("data", "model", "configuration", "train"):
        values = run.recipe.get(section, {})
        rows.append((section, ", ".join(f"{k} {v}" for k, v in values.items() if not isinstance(v, dict))))
    return rows


def _checks(run: Run) -> str:
    rows = [
        (stage, f"{c['id']} {c['title']}", verdict_of(c), c["got"], c["expected"])
        for stage, checks in run.checks.items()
        for c in checks
    ]
    return markdown_table(("stage", "check", "verdict", "got", "expected"), rows) if rows else ""


def verdict_of(check: dict[str, Any]) -> str:
    """Its word, or why it was waived."""
    reason = check["numbers"].get("waived_because")
    return f"waived: {reason}" if reason else check["verdict"]


def _samples(run: Run) -> str:
    return "\n\n".join(f"{label}:\n\n{_block(text)}" for label, text in sample_texts(run))


def _format_sampling(sample: dict[str, Any]) -> str:
    temperature = sample.get("temperature")
    how = (
        "greedy" if temperature == 0 else "sampled" if temperature is None else f"temperature {temperature:g}"
    )
    return f"step {sample['step']}, {how}"


def _environment(run: Run) -> str:
    rows = environment_rows(run)
    return markdown_table(("", ""), rows) if rows else ""


def environment_rows(run: Run) -> list[tuple[str, Any]]:
    """What the run was made on, as far as its manifest says it."""
    facts = run.manifest.get("environment", run.manifest)
    rows = [(name, facts[name]) for name in FACTS if facts.get(name) is not None]
    for group in ("device", "packages", "switches"):
        if facts.get(group):
            rows.append((group, ", ".join(f"{k} {v}" for k, v in facts[group].items())))
    return rows


def commands(run: Run) -> list[str]:
    """What makes the run again, and what looks at it."""
    command = run.manifest.get("command")
    looks = (f"kssm {verb} {run.folder}" for verb in ("verify", "eval", "report"))
    return [*([command] if command else []), *looks]


def _block(text: str) -> str:
    """Text of a model as an indented block: it may hold any fence."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    (empty)"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
