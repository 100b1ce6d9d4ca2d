"""Run the upstream libraries again and compare with the frozen logits and with ours: `make parity`.

python -m tests.parity.regenerate            compare, write docs/results/parity.md; exit 1 when a number moved
python -m tests.parity.regenerate --write    freeze what upstream computes now
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

from kssm_mlx import files
from tests.parity import ours, upstream

TOLERANCE = 1e-4
REPORT = Path(__file__).parents[2] / "docs" / "results" / "parity.md"


def main(arguments: list[str]) -> int:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "rwkv"))
    print(f"upstream: {versions}\n{'checkpoint':26}{'frozen - upstream':>20}{'ours - upstream':>20}")
    worst, rows = 0.0, []
    for name in upstream.NAMES:
        found = upstream.checkpoint(name)
        if "--write" in arguments:
            ours.freeze(name, found, versions)
        _, _, _, frozen = ours.thaw(name)
        mine = ours.logits(ours.load(found.config, found.weights), found.tokens)
        differences = [float(np.abs(x - found.logits).max()) for x in (frozen, mine)]
        print(f"{name:26}{differences[0]:20.2e}{differences[1]:20.2e}")
        rows.append(f"| {name} | {differences[0]:.1e} | {differences[1]:.1e} |")
        worst = max(worst, *differences)
    files.replace(REPORT, _report(versions, rows))
    print(f"worst {worst:.2e}, allowed {TOLERANCE:.0e}: {'ok' if worst <= TOLERANCE else 'FAILED'}")
    return 0 if worst <= TOLERANCE else 1


def _report(versions: str, rows: list[str]) -> str:
    return "\n".join(
        [
            "# Logits against the architectures' own libraries\n",
            f"Largest absolute difference of fp32 logits on tiny random checkpoints; {versions}.",
            "Made by `make parity`.\n",
            "| checkpoint | frozen file against upstream now | ours against upstream |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
