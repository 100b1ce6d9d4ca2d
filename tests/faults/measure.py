"""The figures of docs/reliability.md: each command measures some and keeps them in docs/results/reliability.

python -m tests.faults.measure fuzz INPUTS SEED [READER ...]    added to what other seeds found
python -m tests.faults.measure kills [KILLS]
python -m tests.faults.measure text [TIMES]
python -m tests.faults.measure statistics
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kssm_mlx import files

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "reliability"


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def keep(name: str, value: Any) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    files.replace(RESULTS / f"{name}.json", json.dumps(value, indent=1) + "\n")


def fuzz(inputs: str, seed: str, *names: str) -> None:
    from tests.support.fuzz import outcomes

    for row in outcomes(int(inputs), int(seed), list(names)):
        print(row, flush=True)
        kept = read("fuzz") if (RESULTS / "fuzz.json").exists() else []
        same = (row["reader"], row["seed"])
        keep("fuzz", [r for r in kept if (r["reader"], r["seed"]) != same] + [row])


def kills(count: str = "100") -> None:
    from tests.faults.kill_storm import storm

    with tempfile.TemporaryDirectory(prefix="kill-storm-") as home:
        keep("kills", storm(int(count), Path(home)))


def text(times: str = "3000") -> None:
    from tests.support.streaming import count_differences
    from tests.support.tokenizer_kinds import KINDS

    rows = [
        {"kind": name, "times": int(times), "differ": count_differences(KINDS[name](), int(times), seed=1)}
        for name in KINDS
    ]
    keep("text", rows)


def statistics() -> None:
    from tests.support.statistics_grid import STATISTICS, measure

    warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, of samples without spread
    keep("statistics", [measure(name) for name in STATISTICS])


COMMANDS: dict[str, Callable[..., None]] = {
    "fuzz": fuzz,
    "kills": kills,
    "text": text,
    "statistics": statistics,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
