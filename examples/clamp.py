"""Hold the order parameter R of one block at a value, and see how far that moves the predictions.

python examples/clamp.py
"""

from __future__ import annotations

import kssm_mlx  # before mlx, which takes the first BLAS that is there

# isort: split
import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models import configure
from kssm_mlx.models.base import Clamp, Intervention


def main() -> dict[float, float]:
    """R that is held -> mean KL divergence of the predictions from the free run, nats."""
    model = kssm_mlx.build(configure("kssm", "xs", vocab_size=64), seed=0)
    tokens = mx.random.randint(0, 64, (4, 32), key=mx.random.key(0))
    free = nn.log_softmax(model.forward(tokens).logits)
    moved = {}
    for R in (0.0, 0.5, 0.9):
        held = model.forward(tokens, intervention=Intervention((Clamp("R", R, block=0),)))
        moved[R] = mx.mean(mx.sum(mx.exp(free) * (free - nn.log_softmax(held.logits)), axis=-1)).item()
        achieved = mx.mean(held.trace["block00/R"]).item()
        print(f"R held at {R}: {achieved:.3f} in the trace, predictions move by {moved[R]:.2e} nats")
    return moved


if __name__ == "__main__":
    main()
