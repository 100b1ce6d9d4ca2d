"""`python -m benchmarks`: `kssm bench`, with the results where this repository keeps them."""

from __future__ import annotations

import sys
from pathlib import Path

from kssm_mlx.cli import app

if __name__ == "__main__":
    app(["bench", "--out", str(Path(__file__).parent / "results"), *sys.argv[1:]])
