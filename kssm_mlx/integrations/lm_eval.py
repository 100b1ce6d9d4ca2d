"""Our models in lm-evaluation-harness, which judges language models by tasks that others use too.

It asks three things of a model: the log-likelihood of a text, that of a continuation, and a continuation. The
package is an extra, `kssm-mlx[eval]`; its tasks are files, of which those in a folder of one's own need no
download.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kssm_mlx.errors import ConfigError, DataError
from kssm_mlx.generation import generate
from kssm_mlx.generation.scoring import score_continuation, score_text
from kssm_mlx.models.base import Trained

LENGTH = 256  # tokens of a continuation, where a task does not say


class Answers:
    """What the harness asks, answered by a model; every request has `args`."""

    def __init__(self, trained: Trained):
        if trained.tokenizer is None:
            raise ConfigError(f"{trained.source} came without a tokenizer, so it cannot read a task")
        self.trained = trained

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """(nats, whether it is what the model would say) of each continuation of its context."""
        model, tokenizer = self.trained
        found = [score_continuation(model, tokenizer, *request.args) for request in requests]
        return [(each.nats, each.greedy) for each in found]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        """Nats of each text as a whole."""
        model, tokenizer = self.trained
        return [score_text(model, tokenizer, request.args[0]).nats for request in requests]

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        """A continuation of each context, up to the strings at which the task ends one; greedy unless the
        task gives a temperature.
        """
        return [self._continue(*request.args) for request in requests]

    def _continue(self, context: str, options: dict[str, Any]) -> str:
        stop = options.get("until") or []
        (done,) = generate(
            self.trained,
            context,
            max_tokens=int(options.get("max_gen_toks", options.get("max_tokens", LENGTH))),
            temperature=float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0,
            stop=[stop] if isinstance(stop, str) else [text for text in stop if text],
        )
        return done.text


def run_tasks(
    trained: Trained, tasks: list[str], folder: Path | None = None, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Task -> its numbers, as lm-evaluation-harness names them, with their standard errors.

    folder: of task files; without it the tasks that come with the package, whose texts it downloads. limit:
    of the documents of each task.
    Raises: ConfigError where the package is absent and for a task that there is not; DataError for one whose
        text cannot be read.
    """
    try:
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]  (an extra)
        from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("--tasks needs lm-evaluation-harness: pip install 'kssm-mlx[eval]'") from None
    adapter = type("KssmLM", (Answers, LM), {"__init__": _begin})(trained)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder of task files")
    manager = TaskManager(include_path=folder and str(folder), include_defaults=folder is None)
    if missing := [name for name in tasks if name not in manager.all_tasks]:
        known = f"; {folder} has {', '.join(manager.all_tasks) or 'none'}" if folder else ""
        raise ConfigError(f"no task {', '.join(missing)} in lm-evaluation-harness{known}")
    try:
        found = simple_evaluate(model=adapter, tasks=tasks, task_manager=manager, limit=limit)
    except (OSError, ValueError) as e:
        raise DataError(f"a task cannot be run: {(str(e).splitlines() or [type(e).__name__])[0]}") from None
    return {name: _numbers(row) for name, row in found["results"].items()}


def _begin(self: Any, trained: Trained) -> None:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

    LM.__init__(self)
    Answers.__init__(self, trained)


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """By metric, without the name of the filter behind it where there is none."""
    numbers = {k.removesuffix(",none"): v for k, v in row.items() if isinstance(v, int | float)}
    return {name: float(value) for name, value in numbers.items()}
