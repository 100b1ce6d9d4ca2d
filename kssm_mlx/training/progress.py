"""What a person sees while a run goes on: a bar on a terminal, about twenty plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from kssm_mlx.terminal import printable

LINES = 20


class Progress:
    """`with Progress(steps) as progress: progress.step(row)`; a row is one of metrics.jsonl."""

    def __init__(
        self,
        steps: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.steps = steps
        self._start: int | None = 0
        self.console = console or Console(highlight=False)
        self._clock, self._began = clock, clock()
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._bar.add_task("train", total=steps, numbers="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc) -> None:
        self._bar.stop()

    def begin(self, start: int) -> None:
        """Begin with `start` steps done before (by the run that is resumed)."""
        self._start = None
        self._bar.reset(self._task, completed=start)

    def step(self, row: dict[str, Any]) -> None:
        """Show the numbers of one step."""
        step = row["step"]
        if self._start is None:  # time counts from the end of the first step, which compiles
            self._start, self._began = step, self._clock()
        self._bar.update(self._task, completed=step, numbers=format_numbers(row))
        if not self.console.is_terminal and (step % max(1, self.steps // LINES) == 0 or step == self.steps):
            self.say(f"step {step}/{self.steps}  {format_numbers(row)}  ETA {self._format_time_left(step)}")

    def evaluation(self, row: dict[str, Any]) -> None:
        """Show the numbers of one evaluation."""
        if row["nats_per_token"] is None:
            self.say(f"step {row['step']}: validation is not finite")
            return
        self.say(
            f"step {row['step']}: validation {row['nats_per_token']:.4f} nats/token, "
            f"{row['bits_per_byte']:.4f} bits/byte, perplexity {row['perplexity']:.3f}"
        )

    def say(self, text: str) -> None:
        """One line that stays, above the bar where there is one. Not markup: samples hold brackets."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def _format_time_left(self, step: int) -> str:
        if self._start is None or step == self._start:
            return "unknown yet"
        seconds = (self._clock() - self._began) / (step - self._start) * (self.steps - step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def format_numbers(row: dict[str, Any]) -> str:
    """Loss in nats per token, the order parameter averaged over blocks, tokens per second."""
    coherence = [value for name, value in row.items() if name.startswith("R_") and value is not None]
    parts = [
        f"loss {row['loss']:.4f}" if row["loss"] is not None else "loss not finite",
        *([f"R {sum(coherence) / len(coherence):.3f}"] if coherence else []),
        f"{row['tokens_per_second']:,.0f} tokens/s",
    ]
    return "  ".join(parts)
