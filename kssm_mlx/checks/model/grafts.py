"""Does a graft leave its base model alone until it has learned something?"""

from __future__ import annotations

from kssm_mlx.checks.core.conditions import mean_kl, read_passage, run_arm
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict

NATS = 0.05


@check(
    "C12",
    level="P",
    title="a fresh graft is neutral",
    source="docs/background/phase-grafts.md#phase-block-inside-mamba",
    passes=2,
)
def fresh_graft_is_neutral(ctx: Context) -> Check:
    """Mean KL(base model || grafted) in nats over the tokens of 8 rows of held-out text, before the first
    update, in evaluation mode. The base model is the one that the graft sits in.

    Threshold: <= 0.05 nats: a graft that starts with more has damaged what it is meant to guide, and
    training has to mend that first.
    Caught: PhaseBlock, which halved every channel and standardised the rest: the verified base model was gone
    before the first step.
    Sabotage: exactly that block.
    """
    ctx.need("model")
    base = getattr(ctx.model, "host", None)  # the name of its parameters in checkpoints
    if base is None:
        raise NotMeasurable("the model is no graft: it has no base model")
    if ctx.step:
        raise NotMeasurable(f"the graft has had {ctx.step} updates")
    tokens = read_passage(ctx)
    nats = mean_kl(*(run_arm(model, tokens, ctx.seed).logits for model in (base, ctx.model)))
    return verdict(
        "C12",
        nats <= NATS,
        f"KL {nats:.1e} nats from the base model",
        f"<= {NATS} nats",
        "start the graft as the identity: a readout of zeros, or a gate near zero",
        nats=nats,
    )
