"""A check of one's own: measured, judged, explained, and shown to fire.

python examples/own_check.py
"""

from __future__ import annotations

import kssm_mlx  # before mlx, which takes the first BLAS that is there

# isort: split
import mlx.core as mx

from kssm_mlx.checks.core.registry import Check, Context, check
from kssm_mlx.checks.core.thresholds import Band, judge_by_band
from kssm_mlx.checks.suite import run_suite
from kssm_mlx.models import configure

LOUDNESS = Band(low=0.01, high=20)


@check(
    "MY1", level="P", title="the logits are neither silent nor loud", source="docs/checks-own.md", passes=1
)
def loudness(ctx: Context) -> Check:
    """Standard deviation of the logits on one row of 32 ids, in evaluation mode.

    Threshold: 0.01 to 20: below, nothing is said; above, one step saturates the softmax.
    Caught: a head forty times too large.
    Sabotage: a head multiplied by a million.
    """
    ctx.need("model")
    logits = ctx.model(mx.arange(32)[None] % ctx.model.args.vocab_size)
    return judge_by_band("MY1", {"logits": mx.std(logits).item()}, LOUDNESS, "scale the head")


def main() -> dict[str, str]:
    """The verdicts on a sound model and on one with a loud head."""
    model = kssm_mlx.build(configure("kssm", "xs", vocab_size=64))
    (sound,) = run_suite(Context(model, model.args), ["MY1"])
    model.head.weight = model.head.weight * 1e6
    (loud,) = run_suite(Context(model, model.args), ["MY1"])
    for said in (sound, loud):
        print(f"{said.id} {said.verdict}: got {said.got}, expected {said.expected}. {said.fix}")
    return {"sound": sound.verdict, "loud": loud.verdict}


if __name__ == "__main__":
    main()
