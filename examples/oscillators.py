"""The oscillators alone: R over the coupling, simulated and from theory.

python examples/oscillators.py
"""

from __future__ import annotations

from kssm_mlx.oscillators.simulate import prepare, simulate
from kssm_mlx.oscillators.theory import lorentzian


def main(n: int = 2000) -> list[tuple[float, float, float]]:
    """(K, simulated R, R of theory) below, at and above the onset K = 2 gamma."""
    rows = []
    for row in simulate(prepare("mean-field", K=(0.5, 1.0, 2.0, 4.0), n=n, width=0.5, seed=0)).rows:
        rows.append((row.K, row.R, lorentzian(row.K, 0.5)))
        print("K {:.1f}   R {:.3f}   theory {:.3f}".format(*rows[-1]))
    return rows


if __name__ == "__main__":
    main()
