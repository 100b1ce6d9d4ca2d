"""A progress bar in bytes, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


class Bytes:
    """`with Bytes() as meter: meter.start(total); meter.advance(n)`."""

    def __init__(self, quiet: bool = False):
        console = Console(stderr=True)
        columns = (TextColumn("reading"), BarColumn(bar_width=32), DownloadColumn(), TransferSpeedColumn())
        shown = console.is_terminal and not quiet
        self._bar = Progress(*columns, console=console, disable=not shown, transient=True)
        self._task = self._bar.add_task("reading", total=None)

    def __enter__(self) -> Bytes:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def start(self, total: int) -> None:
        self._bar.update(self._task, total=total)

    def advance(self, n: int) -> None:
        self._bar.advance(self._task, n)

    def through(self, texts: Sequence[str]) -> Iterator[str]:
        """`texts`, each counted when the next one is asked for."""
        self.start(sum(len(text.encode()) for text in texts))
        for text in texts:
            yield text
            self.advance(len(text.encode()))
