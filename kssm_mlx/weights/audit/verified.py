"""Which weights on this machine were verified, and how far, by root digest, size and time of every file.

    ~/.cache/kssm-mlx/verified.json ($KSSM_CACHE): path -> {level, root, files: {name: [size, time, inode]}}

A file that was touched is no longer the one that was verified, whatever its content.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from kssm_mlx import files
from kssm_mlx.parsing import parse_json
from kssm_mlx.weights.audit.inspect import Inspection

LEVELS = ("L3", "L5")


def store() -> Path:
    """The file in which verdicts are kept."""
    folder = os.environ.get("KSSM_CACHE") or Path.home() / ".cache" / "kssm-mlx"
    return Path(folder) / "verified.json"


def remember(found: Inspection, level: str) -> None:
    """Note that an inspection passed up to `level`. A cache that cannot be written is no reason to fail."""
    if not found.ok:
        return
    key = str(found.container.path.resolve())
    entry = {"level": level, "root": found.root, "files": _stats(_parts(found.container.path, found))}
    known = is_verified(found.container.path)
    if known and known["root"] == found.root and LEVELS.index(known["level"]) > LEVELS.index(level):
        return
    with suppress(OSError):
        store().parent.mkdir(parents=True, exist_ok=True)
        files.replace(store(), json.dumps({**_read(), key: entry}, indent=1) + "\n")


def is_verified(path: str | Path, level: str = "L3") -> dict[str, Any] | None:
    """{level, root, files} of weights that passed `level` and were not touched since; else None."""
    entry = _read().get(str(Path(path).expanduser().resolve()))
    if not entry or LEVELS.index(entry["level"]) < LEVELS.index(level):
        return None
    return entry if entry["files"] == _stats(map(Path, entry["files"])) else None


def _parts(path: Path, found: Inspection) -> list[Path]:
    """The files that make the model: weights, and the configuration and tokenizer beside them."""
    beside = [found.container.folder / name for name in ("config.json", "recipe.json", "tokenizer.json")]
    return [*found.container.files, *(p for p in beside if p.is_file())]


def _stats(paths) -> dict[str, list[int]]:
    stats = {}
    for path in paths:
        with suppress(OSError):
            s = path.stat()
            stats[str(path.absolute())] = [s.st_size, s.st_mtime_ns, s.st_ino]
    return stats


def _read() -> dict[str, Any]:
    try:
        table = parse_json(store().read_text("utf-8"))
        return table if isinstance(table, dict) else {}
    except (OSError, ValueError):
        return {}
