"""Prepared text as a file: a JSON object with the field `text` per line, which `jsonl:PATH` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kssm_mlx import files
from kssm_mlx.errors import DataError


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One object per line, all in one step. Raises: DataError for a path that cannot be written."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_text(path: Path, text: str) -> None:
    """`text` into `path`, in one step; folders above it are made. Raises: as `write_records`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, text)
    except OSError as e:
        raise DataError(f"cannot write {path}: {(e.strerror or str(e)).lower()}") from None
