"""Which checks run when, and in which order."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kssm_mlx.checks.core import evidence, model_size, plugins
from kssm_mlx.checks.core.registry import (
    DOCTOR,
    LEVELS,
    REGISTRY,
    WEIGHT_LEVELS,
    Check,
    Context,
    Definition,
    NotMeasurable,
    apply_waivers_to,
    run_checks,
    verdict,
)
from kssm_mlx.errors import ConfigError, nearest

plugins.load_rooms()  # whoever can run a suite knows all of our checks


def list_suite(level: str) -> tuple[str, ...]:
    """The ids of a level: data and files first, then the cheap before the dear, else as they are written.

    Raises: ConfigError for a level that does not exist, or a plug-in that cannot be used.
    """
    if level not in (*LEVELS, *WEIGHT_LEVELS, DOCTOR):
        raise ConfigError(f"no level {level!r}; levels are {', '.join(LEVELS)}")
    plugins.load()
    found = [d for d in REGISTRY.values() if level in d.levels]
    return tuple(d.id for d in sorted(found, key=lambda d: d.passes))


def run_suite(
    context: Context, which: str | Iterable[str] = "P", waivers: dict[str, str] | None = None
) -> list[Check]:
    """The verdicts of a level ("P") or of single ids, in the order of the suite, waivers applied.

    Raises: ConfigError for a level or an id that does not exist.
    """
    checks = [run_check(REGISTRY[id], context) for id in select_ids(which)]
    return apply_waivers_to(checks, waivers or {})


def require_known_waivers(waivers: dict[str, str]) -> None:
    """Raises: ConfigError for a waiver without a reason, or of a check that does not exist."""
    plugins.load()
    apply_waivers_to((), waivers)


def select_ids(which: str | Iterable[str]) -> tuple[str, ...]:
    """The ids of a level, or the given ids, in capitals or not, after a look whether each exists."""
    if isinstance(which, str):
        return list_suite(which)
    plugins.load()
    ids = tuple(id.strip().upper() for id in which)
    known = run_checks()
    for id in ids:
        if id in REGISTRY and id not in known:
            asked_by = "kssm doctor" if REGISTRY[id].level == DOCTOR else "kssm verify-weights"
            raise ConfigError(f"{id} is not asked of runs and models: {asked_by} asks it")
        if id not in known:
            raise ConfigError(f"no check {id!r}{nearest(id, known)}; known: {', '.join(known)}")
    return ids


def run_level(level: str, subject: Any) -> list[Check]:
    """The verdicts of a level of weights or of the machine, in the order in which they are written."""
    plugins.load()
    return [run_check(d, subject) for d in [*REGISTRY.values()] if level in d.levels]


def run_check(definition: Definition, context: Any) -> Check:
    """One verdict with its time and, of a run, what it rests on. A check that raises has failed: what it
    measures cannot even be run. context: what checks of this level are given.
    """
    start, ran_on = time.perf_counter(), ""
    try:
        if definition.of_runs:
            context, ran_on = model_size.fit_context(definition, _narrow_context(definition, context))
        if definition.needs_training and not (context.trained or context.untrained):
            raise NotMeasurable("the model is untrained; --untrained measures it all the same")
        result = definition.run(context)
    except NotMeasurable as e:
        result = verdict(definition.id, "not measurable", str(e), "", "")
    except Exception as e:
        result = verdict(
            definition.id,
            "fail",
            f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else 'no message'}",
            "a measurement",
            "the traceback is among the numbers of checks.json and --json",
            traceback=traceback.format_exc(),
        )
    took = time.perf_counter() - start
    rests_on = evidence.describe_evidence(context) if definition.of_runs else ""
    return replace(result, seconds=took, evidence=rests_on, ran_on=ran_on)


def _narrow_context(definition: Definition, context: Context) -> Context:
    """The context for one check: a claim, and what was learned, is a matter of text."""
    claims = definition.needs_training or definition.level == "G"
    return replace(context, text_only=claims and not context.untrained, caveats=[])
