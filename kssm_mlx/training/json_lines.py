"""Files of one JSON object per line, that a resumed run continues as if it had never stopped."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import mlx.core as mx

from kssm_mlx import files
from kssm_mlx.errors import CheckpointError
from kssm_mlx.files import explain_write_errors
from kssm_mlx.parsing import parse_json


class Rows:
    """`metrics.jsonl` or `samples.jsonl`; each row has a "step" and is flushed when it is written.

    Opening it drops the rows after `step`, and a last line that was cut off by a crash.

    Raises: CheckpointError when the file cannot be written.
    """

    def __init__(self, path: str | Path, step: int):
        self.path = Path(path)
        with explain_write_errors(self.path.name, self.path.parent):
            files.replace(self.path, "".join(_lines_until(self.path, step)))
            self._file = open(self.path, "a")  # noqa: SIM115  open as long as the run

    def write(self, row: dict[str, Any]) -> None:
        """Append one row. A number that is not finite is written as null, which JSON has a word for.

        Raises: CheckpointError when the file was deleted since it was opened: the row would go nowhere.
        """
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise CheckpointError(
                f"{self.path} was deleted while the run was writing to it; the run has stopped. What is left "
                f"in {self.path.parent} cannot be continued: train again into another folder"
            )
        line = json.dumps({name: to_plain(value) for name, value in row.items()}, allow_nan=False)
        with explain_write_errors(self.path.name, self.path.parent):
            self._file.write(line + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Push the rows to disk: a checkpoint must not outlive the rows that lead up to it."""
        with explain_write_errors(self.path.name, self.path.parent):
            files.sync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class NoRows:
    """Rows that another process writes."""

    def __init__(self, path: str | Path, step: int):
        del path, step

    def write(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def to_plain(value: Any) -> Any:
    """A value as JSON has it: arrays [] become numbers, numbers that are not finite become None."""
    number = value.item() if isinstance(value, mx.array) else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _lines_until(path: Path, step: int) -> list[str]:
    """The whole lines of `path` whose step is at most `step`."""
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n") and _step_of(line) <= step]


def _step_of(line: str) -> float:
    """The step of a row; after every step for a line that a crash left unreadable."""
    try:
        return parse_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
