"""How far apart two models are in what they predict."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


def kl_from_base_model(model, tokens: mx.array) -> float:
    """Mean KL(base model || grafted) in nats per token. Shapes: tokens [B, T]."""
    log_p, log_q = (
        nn.log_softmax(m.forward(tokens).logits.astype(mx.float32), axis=-1) for m in (model.host, model)
    )
    return (mx.exp(log_p) * (log_p - log_q)).sum(-1).mean().item()
