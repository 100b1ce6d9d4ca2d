"""What acts need to know of a model: the sizes of its vectors, whether a clamp can do anything, a model held.

A clamp takes its target from a healthy model (`calibrate(control, ...)`) and, with scope "frozen", what it
meets from the model it is put into (`calibrate(model, ...)`), on rows that are no part of the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Intervention, LanguageModel, training_mode
from kssm_mlx.models.interventions.spec import Amplitude, Observe, Statistics
from kssm_mlx.models.recurrent import RecurrentModel

Place = tuple[str, int]  # site and block; S0 and S1 are of block 0


def calibrate(model: RecurrentModel, batches: Iterable[mx.array], *, of: int = 4) -> dict[Place, Statistics]:
    """Statistics of every site of `model`, the mean over batches of rows of ids, at S2 and S3 per unit.

    Source: docs/background/allostasis.md#clamps: in evaluation mode, of whatever weights the model has now.
    Raises: ConfigError when there is no batch.
    """
    found: dict[Place, list[Statistics]] = {}
    for tokens in batches:
        for place, x in _site_vectors(model, tokens).items():
            units = 1 if place[0] in ("S0", "S1") else of
            found.setdefault(place, []).append(
                Statistics.of(mx.unflatten(x.astype(mx.float32), -1, (units, -1)))
            )
        mx.eval(found)
    if not found:
        raise ConfigError("nothing to calibrate on; give at least one batch of rows")
    return {
        place: Statistics(*(mx.stack(list(values)).mean(axis=0) for values in zip(*each, strict=True)))
        for place, each in found.items()
    }


def _site_vectors(model: RecurrentModel, tokens: mx.array) -> dict[Place, mx.array]:
    """What stands at every site. Shapes: tokens [B, T] -> [B, T, C] each."""
    with training_mode(model, training=False):
        trace = model.hidden(tokens, None, Intervention(acts=(Observe(),)))[2]
        vectors = {(site, 0): trace[site] for site in ("S0", "S1")}
        if "S2" in model.act_sites:
            vectors |= {("S2", i): trace[f"block{i:02d}/units"] for i in range(len(model.layers))}
        return vectors | (_carried_states(model, tokens) if "S3" in model.act_sites else {})


def _carried_states(model: RecurrentModel, tokens: mx.array) -> dict[Place, mx.array]:
    cache, states = None, []
    for token in mx.split(tokens, tokens.shape[1], axis=1):
        cache = model.hidden(token, cache)[1]
        states.append([model.state_view(entry) for entry in cache])
    return {("S3", i): mx.stack(list(views), axis=1) for i, views in enumerate(zip(*states, strict=True))}


def require_effect(model: RecurrentModel, intervention: Intervention, *, head_is_trained: bool) -> list[str]:
    """What to warn of before a clamp experiment.

    Raises: ConfigError for units that do not divide what is at their site, and for a naive clamp on what only
        a norm reads, which undoes it (X4).
    """
    warnings = []
    _require_equal_parts(model, intervention)
    for act in intervention.acts:
        if not isinstance(act, Amplitude):
            continue
        if act.site == "S0" and act.kind == "naive" and _forgets_scale(model):
            raise ConfigError(
                f"{act.describe()} does nothing: only the final norm reads the stream there, and it divides "
                "by the size again; clamp at S1 or S2, or use the kind mean-preserving"
            )
        if act.site == "S1" and head_is_trained:
            warnings.append(
                f"{act.describe()}: the head is trained and can undo it; freeze the head and the final norm, "
                "or clamp in evaluation only and compare under noise"
            )
    return warnings


def _require_equal_parts(model: RecurrentModel, intervention: Intervention) -> None:
    """Raises: ConfigError that names the act, its site and how wide that is."""
    divided = [act for act in intervention.acts if act.of > 1 and act.site not in ("", "routing")]
    vectors = _site_vectors(model, mx.zeros((1, 1), mx.int32)) if divided else {}
    for act in divided:
        for (site, block), x in vectors.items():
            if site == act.site.replace("S4", "S1") and (width := x.shape[-1]) % act.of:
                raise ConfigError(
                    f"{act.describe()}: {act.of} units cannot share the {width} channels of {act.site} in "
                    f"block {block}"
                )


def _forgets_scale(model: RecurrentModel) -> bool:
    """Whether the final norm gives the same for x and 3 x."""
    x = model.hidden(mx.zeros((1, 8), mx.int32), None, Intervention(acts=(Observe(),)))[2]["S0"]
    x = 10 * x / mx.sqrt(mx.square(x).mean())
    return bool(mx.allclose(model.finish(x), model.finish(3 * x), rtol=1e-2, atol=1e-2).item())


class ModelWithIntervention(LanguageModel):
    """A model under an intervention, wherever models go: evaluation, generation, checks."""

    def __init__(self, model: LanguageModel, intervention: Intervention):
        super().__init__()
        self.model, self._intervention = model, intervention
        self.args, self.model_type = model.args, model.model_type
        self.train(model.training)

    def forward(self, tokens, cache=None, intervention=None, **options):
        if intervention is not None:
            raise ConfigError("this model is held by an intervention already; give the model itself another")
        return self.model.forward(tokens, cache, self._intervention, **options)

    def make_cache(self):
        return self.model.make_cache()

    @property
    def layers(self):
        return self.model.layers
